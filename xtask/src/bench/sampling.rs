//! Several samples of each prompt, or beams: the memory that sharing saves and the rate sustained,
//! figures 14 and 15 of the paper, simulated.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::experiment::{
    Axis, Bound, Cell, Check, Experiment, Plot, PlotKind, RunArgs, Series, Source, Table,
};
use super::measured::sharing::{self, Inputs};
use super::paper::account::Window;
use super::paper::dataset::{Data, Dataset};
use super::paper::machine::{Machine, Model};
use super::paper::replay::{Run, replay};
use super::paper::sweep::{Found, Task, spread, sweep};
use super::paper::systems;
use super::paper::trace::Load;
use super::resume::{Points, num_threads};

pub(crate) const NAME: &str = "sampling";

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    run: RunArgs,
    /// A model to measure sharing with, on this machine; without it the paper's is simulated
    #[arg(long, value_name = "FILE", requires = "prompts")]
    model: Option<PathBuf>,
    /// Its prompts: lines of JSON with `instruction`, `input` and `output` or `output_tokens`, plain or
    /// .gz
    #[arg(long, value_name = "FILE", requires = "model")]
    prompts: Option<PathBuf>,
}

/// Samples of each prompt.
const NUM_SEQS: [usize; 3] = [2, 4, 6];
const SYSTEMS: [&str; 4] = ["orca-max", "orca-pow2", "orca-oracle", "paged"];
/// Figure 14: rates of [`SYSTEMS`] at 0.5 s a token, read off, by sequences; samples, then beams.
const FIGURE_14: [[[f64; 4]; 3]; 2] = [
    [
        [1.5, 9.0, 12.7, 18.1],
        [0.52, 4.7, 7.0, 10.3],
        [0.51, 3.0, 4.6, 7.1],
    ],
    [
        [1.3, 7.0, 9.4, 17.0],
        [0.37, 3.2, 5.0, 9.6],
        [0.30, 1.9, 3.2, 7.0],
    ],
];
/// Figure 15, beams, on Alpaca: what the simulated beams are made to share.
const BEAMS_SAVE: [f64; 3] = [37.56, 53.13, 55.16];
/// Figure 15, parallel sampling, by samples: percent of the blocks saved on Alpaca.
const FIGURE_15: [f64; 3] = [6.09, 8.53, 9.79];
/// Of ShareGPT the text gives the least and the greatest.
const FIGURE_15_SHAREGPT: (f64, f64) = (16.2, 30.5);
const SEEDS: [u32; 3] = [0, 1, 2];
const WINDOW: Window = Window {
    from_s: 300.0,
    until_s: 900.0,
};

/// Where sharing is looked at.
#[derive(Serialize)]
struct Point {
    data: Data,
    num_seqs: usize,
    /// Requests a second.
    rate: f64,
    /// The beams' part of steps in which one gives way; see [`Machine::renewal`].
    renewal: Option<f64>,
}

/// Beams to be found a renewal for.
#[derive(Serialize)]
struct Beams {
    num_seqs: usize,
    saving: f64,
}

/// Requests a second at which those are looked at: nothing waits, which changes no sharing.
const BEAMS_RATE: f64 = 4.0;

#[derive(Serialize, Deserialize)]
struct Saving(f64);

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if let (Some(model), Some(prompts)) = (&args.model, &args.prompts) {
        let inputs = Inputs { model, prompts };
        return sharing::experiment(NAME, &inputs, &args.run)?.publish(&args.run);
    }
    experiment(&args.run)?.publish(&args.run)
}

pub(crate) fn experiment(run: &RunArgs) -> anyhow::Result<Experiment> {
    let points = Points::open(NAME, run)?;
    let (seeds, duration_s) = match run.quick {
        true => (&SEEDS[..1], 200.0),
        false => (&SEEDS[..], 600.0),
    };
    // The artifact's rates.
    let places: Vec<Point> = [(Data::ShareGpt, 2.0), (Data::Alpaca, 20.0)]
        .into_iter()
        .flat_map(|(data, rate)| {
            NUM_SEQS.map(|num_seqs| Point {
                data,
                num_seqs,
                rate,
                renewal: None,
            })
        })
        .collect();
    let datasets = [Dataset::load(Data::ShareGpt)?, Dataset::load(Data::Alpaca)?];
    let savings = points.all(&places, num_threads(), |point| saving(&datasets, point))?;
    let beams = NUM_SEQS.into_iter().zip(BEAMS_SAVE);
    let beams: Vec<Beams> = beams
        .map(|(num_seqs, saving)| Beams { num_seqs, saving })
        .collect();
    let renewals = points.all(&beams, num_threads(), |beams| renewal(&datasets, beams))?;
    let mut tasks = Vec::new();
    for (rates, is_beams) in FIGURE_14.iter().zip([false, true]) {
        for (i, num_seqs) in NUM_SEQS.into_iter().enumerate() {
            for (system, near) in SYSTEMS.into_iter().zip(rates[i]) {
                tasks.extend(seeds.iter().map(|&seed| Task {
                    model: Model::Opt13b,
                    data: Data::Alpaca,
                    system,
                    num_seqs,
                    renewal: is_beams.then(|| renewals[i]),
                    duration_s,
                    seed,
                    near,
                }));
            }
        }
    }
    let found = sweep(&points, &tasks, num_threads())?;
    let mut experiment = describe(seeds, duration_s);
    experiment.points = points.into_files();
    report_savings(&mut experiment, &savings);
    for (num_seqs, renewal) in NUM_SEQS.into_iter().zip(renewals) {
        experiment.parameter(
            &format!("steps in which one of {num_seqs} beams gives way"),
            renewal,
        );
    }
    let of_systems: Vec<&[Found]> = found.chunks(seeds.len()).collect();
    let of_decodings = of_systems.chunks(SYSTEMS.len() * NUM_SEQS.len());
    for ((name, papers), found) in ["samples", "beams"]
        .iter()
        .zip(&FIGURE_14)
        .zip(of_decodings)
    {
        report_rates(&mut experiment, (name, papers), found);
    }
    Ok(experiment)
}

fn saving(datasets: &[Dataset], point: &Point) -> anyhow::Result<Saving> {
    let dataset = datasets.iter().find(|set| set.data == point.data);
    let trace = dataset.expect("both are loaded").trace(Load {
        rate: point.rate,
        duration_s: WINDOW.until_s,
        seed: SEEDS[0],
    });
    let machine = Machine {
        num_seqs: point.num_seqs,
        renewal: point.renewal,
        ..Machine::paper(Model::Opt13b, 0)
    };
    let outcome = replay(Run {
        system: systems::named("paged")?,
        machine: &machine,
        trace: &trace,
        window: WINDOW,
    })?;
    Ok(Saving(outcome.usage.saving_percent()))
}

/// In what part of the steps a beam gives way so that as much is saved; by halves.
fn renewal(datasets: &[Dataset], beams: &Beams) -> anyhow::Result<f64> {
    let (mut low, mut high) = (1e-3f64, 1.0f64);
    for _ in 0..10 {
        let middle = (low * high).sqrt();
        let Saving(saved) = saving(
            datasets,
            &Point {
                data: Data::Alpaca,
                num_seqs: beams.num_seqs,
                rate: BEAMS_RATE,
                renewal: Some(middle),
            },
        )?;
        match saved < beams.saving {
            true => low = middle,
            false => high = middle,
        }
    }
    Ok((low * high).sqrt())
}

fn describe(seeds: &[u32], duration_s: f64) -> Experiment {
    let mut experiment = Experiment::simulated(NAME, "Several samples of a prompt");
    experiment.figures = vec!["Fig 14".into(), "Fig 15".into()];
    experiment.parameter("model", Model::Opt13b.name());
    experiment.parameter("trace of rates, s", duration_s);
    experiment.parameter("seeds", format!("{seeds:?}"));
    experiment.parameter("sharing counted, s", "300 to 900");
    experiment.paper = "Each request wants 2, 4 or 6 samples of its prompt (or as many beams). The pages of \
        the prompt are shared until they are written. Orca reserves for each sample, and copies the prompt."
        .into();
    experiment.ours = "Samples are forks in Pageloom's scheduler, which share blocks, the last one copied \
        on write. What sharing saves is 1 - blocks in use / blocks by the sequences, over time, at the \
        artifact's rates: 2 req/s of ShareGPT, 20 of Alpaca. Rates are of Alpaca. Which \
        beams survive depends on a model's text, so what beams share is not predicted here but taken from \
        the paper's figure 15: in as many steps as that takes, one beam gives way to a fork of another. (With \
        `--model` and `--prompts` it is measured on a real model.) In the Orca systems a fork copies all its keys and \
        values, at the speed of the memory."
        .into();
    experiment.notes = NOTES.map(str::to_owned).into();
    experiment
}

const NOTES: [&str; 2] = [
    "What is saved hardly depends on the time of a step. The prompts of Alpaca are 5 % shorter here than in \
     the paper, by another tokenizer, and less is saved by sharing them.",
    "Rates of Alpaca are higher than the paper's, as in figure 12d; the systems' ratios are what to compare. \
     With beams, and with many samples, the paper's system gains more over Orca than here: the copies of \
     Orca's forks take no time here but the memory's, and on the paper's engine were many small ones.",
];

fn report_savings(experiment: &mut Experiment, savings: &[Saving]) {
    let columns = [
        ("samples", 0),
        ("ShareGPT", 1),
        ("Alpaca", 1),
        ("paper, Alpaca", 1),
    ];
    let mut table = Table::new("Blocks saved, % (Fig 15a)", &columns);
    let (sharegpt, alpaca) = savings.split_at(NUM_SEQS.len());
    let (least, most) = FIGURE_15_SHAREGPT;
    for (i, num_seqs) in NUM_SEQS.into_iter().enumerate() {
        let (ours, paper) = (alpaca[i].0, FIGURE_15[i]);
        table.rows.push(vec![
            num_seqs.into(),
            Cell::Number(sharegpt[i].0),
            Cell::Number(ours),
            Cell::Number(paper),
        ]);
        let name = |data: Data| format!("{}, {num_seqs} samples: blocks saved", data.name());
        let bound = Bound::Between(least, most);
        let check = Check::new(name(Data::ShareGpt), sharegpt[i].0, bound);
        experiment.checks.push(check.unit("%").required());
        let check = Check::new(name(Data::Alpaca), ours, Bound::Within(2.0));
        experiment.checks.push(check.paper(paper).unit("%"));
    }
    experiment.tables.push(table);
}

/// `papers`: what the sequences are, and figure 14's rates. `found`: by sequences, systems and seeds.
fn report_rates(
    experiment: &mut Experiment,
    (kind, papers): (&str, &[[f64; 4]; 3]),
    found: &[&[Found]],
) {
    let mut ratios = Vec::new();
    for (i, found) in found.chunks(SYSTEMS.len()).enumerate() {
        let (num_seqs, papers) = (NUM_SEQS[i], papers[i]);
        let columns = [
            ("system", 0),
            ("mean at 0.2 s, req/s", 2),
            ("mean at 0.5 s, req/s", 2),
            ("seeds at 0.5 s", 0),
            ("paper at 0.5 s", 2),
        ];
        let title = format!("Alpaca, {num_seqs} {kind} (Fig 14)");
        let mut table = Table::new(title, &columns);
        let mut means = Vec::new();
        for ((system, paper), found) in SYSTEMS.into_iter().zip(papers).zip(found) {
            let knees = |at: usize| found.iter().map(|f| f.knees[at]).collect::<Vec<_>>();
            let (mean, least, most) = spread(&knees(1));
            means.push(mean);
            table.rows.push(vec![
                system.into(),
                Cell::Number(spread(&knees(0)).0),
                Cell::Number(mean),
                Cell::Text(format!("{least:.2} to {most:.2}")),
                Cell::Number(paper),
            ]);
        }
        experiment.tables.push(table);
        let (ours, paper) = (means[3] / means[2], papers[3] / papers[2]);
        ratios.push((ours, paper));
        let name = format!("Alpaca, {num_seqs} {kind}: paged over orca-oracle at 0.5 s");
        let check = Check::new(name, ours, Bound::AtLeast(1.0)).paper(paper);
        experiment.checks.push(check);
    }
    experiment.plots.push(plot(kind, &ratios));
}

/// `ratios`: ours and the paper's, by samples.
fn plot(kind: &str, ratios: &[(f64, f64)]) -> Plot {
    let names = NUM_SEQS.map(|n| n.to_string());
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let bars = |source, value: fn(&(f64, f64)) -> f64| Series {
        name: "paged over orca-oracle".into(),
        source,
        points: ratios
            .iter()
            .zip(0..)
            .map(|(r, i)| (f64::from(i), value(r)))
            .collect(),
    };
    Plot {
        name: kind.to_owned(),
        title: format!("Rate sustained with {kind}, paged over Orca (Oracle)"),
        caption: "OPT-13B, Alpaca, at 0.5 s a token.".into(),
        kind: PlotKind::Bars,
        x: Axis::categories(&format!("{kind} of each request"), &names),
        y: Axis::linear("ratio of rates"),
        series: vec![
            bars(Source::Paper("Fig 14".into()), |r| r.1),
            bars(Source::Simulated, |r| r.0),
        ],
        thresholds: vec![("Orca (Oracle)".into(), 1.0)],
    }
}
