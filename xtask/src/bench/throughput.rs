//! The rate that each system sustains: figures 12 and 17 of the paper, simulated.

use std::path::PathBuf;

use anyhow::ensure;

use super::experiment::{Bound, Cell, Check, Experiment, Plot, RunArgs, Table};
use super::measured;
use super::paper::dataset::Data;
use super::paper::machine::Model;
use super::paper::sweep::{Drawn, Found, THRESHOLDS, Task, latency_plot, spread, sweep};
use super::paper::systems;
use super::resume::{Points, num_threads};

pub(crate) const NAME: &str = "throughput";

#[derive(clap::Args, Clone)]
pub(crate) struct Args {
    #[command(flatten)]
    run: RunArgs,
    /// A model to measure on, on this machine; without it the paper's is simulated
    #[arg(long, value_name = "FILE", conflicts_with_all = ["systems", "parts"])]
    model: Option<PathBuf>,
    /// Systems, with commas between, from those that serve least; an unknown name lists all [default:
    /// those of figure 12]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    systems: Vec<String>,
    /// Parts of the figures, like 12a,17; an unknown name lists all [default: all; with --quick
    /// 12a,12d,17]
    #[arg(long, value_delimiter = ',', value_name = "PARTS")]
    parts: Vec<String>,
}

/// The systems of figure 12.
const SYSTEMS: [&str; 5] = ["ft", "orca-max", "orca-pow2", "orca-oracle", "paged"];
const SEEDS: [u32; 3] = [0, 1, 2];

/// A part of a figure.
struct Panel {
    part: &'static str,
    model: Model,
    data: Data,
    /// Rates where the latency is 0.5 s a token, read off; of [`SYSTEMS`].
    paper: [Option<f64>; 5],
}

const PANELS: [Panel; 7] = [
    panel(
        "12a",
        Model::Opt13b,
        Data::ShareGpt,
        [0.24, 0.53, 0.78, 1.10, 1.93],
    ),
    panel(
        "12b",
        Model::Opt66b,
        Data::ShareGpt,
        [0.10, 0.20, 0.27, 0.40, 0.94],
    ),
    panel(
        "12c",
        Model::Opt175b,
        Data::ShareGpt,
        [0.11, 0.92, 1.28, 1.62, 2.38],
    ),
    panel(
        "12d",
        Model::Opt13b,
        Data::Alpaca,
        [2.6, 3.8, 16.1, 21.1, 28.1],
    ),
    panel(
        "12e",
        Model::Opt66b,
        Data::Alpaca,
        [1.3, 1.24, 6.3, 10.5, 18.7],
    ),
    panel(
        "12f",
        Model::Opt175b,
        Data::Alpaca,
        [0.85, 5.1, 17.1, 19.2, 20.2],
    ),
    Panel {
        part: "17",
        model: Model::Opt13b,
        data: Data::Chatbot,
        paper: [None, Some(0.55), Some(0.57), Some(0.57), Some(0.85)],
    },
];

const fn panel(part: &'static str, model: Model, data: Data, paper: [f64; 5]) -> Panel {
    let [a, b, c, d, e] = paper;
    Panel {
        part,
        model,
        data,
        paper: [Some(a), Some(b), Some(c), Some(d), Some(e)],
    }
}

impl Panel {
    /// Seconds of a trace: the paper's, but of Alpaca, whose requests are many, the artifact's
    /// default of ten minutes.
    fn duration_s(&self, quick: bool) -> f64 {
        match (quick, self.data) {
            (true, Data::Alpaca) => 200.0,
            (true, _) => 1800.0,
            (false, Data::Alpaca) => 600.0,
            (false, _) => self.model.trace_s(),
        }
    }

    fn paper_of(&self, system: &str) -> Option<f64> {
        let at = SYSTEMS.iter().position(|&name| name == system);
        at.and_then(|at| self.paper[at])
    }

    fn title(&self) -> String {
        format!(
            "Fig {}: {}, {}",
            self.part,
            self.model.name(),
            self.data.name()
        )
    }
}

/// A system's curves in a panel, one for each seed.
struct Row<'a> {
    system: &'static str,
    found: &'a [Found],
}

impl Row<'_> {
    /// Rates of a threshold: means, least and greatest over the seeds.
    fn knee(&self, threshold: usize) -> (f64, f64, f64) {
        let knees: Vec<f64> = self.found.iter().map(|f| f.knees[threshold]).collect();
        spread(&knees)
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(model) = &args.model {
        return measured::throughput::experiment(NAME, model, &args.run)?.publish(&args.run);
    }
    let is_own = !args.systems.is_empty() || !args.parts.is_empty();
    let args = Args {
        run: args.run.apart(is_own),
        ..args.clone()
    };
    experiment_of(&args)?.publish(&args.run)
}

/// With the systems and parts by default.
pub(crate) fn experiment(run: &RunArgs) -> anyhow::Result<Experiment> {
    experiment_of(&Args {
        run: run.clone(),
        model: None,
        systems: Vec::new(),
        parts: Vec::new(),
    })
}

fn experiment_of(args: &Args) -> anyhow::Result<Experiment> {
    let systems = chosen_systems(args)?;
    let panels = chosen_panels(args)?;
    let points = Points::open(NAME, &args.run)?;
    let seeds = if args.run.quick { &SEEDS[..1] } else { &SEEDS };
    let mut tasks = Vec::new();
    for panel in &panels {
        for &system in &systems {
            tasks.extend(seeds.iter().map(|&seed| Task {
                model: panel.model,
                data: panel.data,
                system,
                num_seqs: 1,
                renewal: None,
                duration_s: panel.duration_s(args.run.quick),
                seed,
                near: panel.paper_of(system).unwrap_or(1.0),
            }));
        }
    }
    let found = sweep(&points, &tasks, num_threads())?;
    let mut experiment = describe(seeds);
    experiment.flag("systems", &args.systems);
    experiment.flag("parts", &args.parts);
    let num_requests: usize = found.iter().map(|f| f.num_requests).sum();
    experiment.parameter("requests simulated", num_requests);
    for (panel, found) in panels.iter().zip(found.chunks(systems.len() * seeds.len())) {
        let rows: Vec<Row<'_>> = systems
            .iter()
            .zip(found.chunks(seeds.len()))
            .map(|(&system, found)| Row { system, found })
            .collect();
        experiment.tables.push(table(panel, &rows));
        experiment.plots.push(plot(panel, &rows));
        experiment.checks.extend(checks(panel, &rows));
    }
    experiment.points = points.into_files();
    Ok(experiment)
}

fn chosen_systems(args: &Args) -> anyhow::Result<Vec<&'static str>> {
    if args.systems.is_empty() {
        return Ok(SYSTEMS.to_vec());
    }
    let named = args.systems.iter().map(|name| systems::named(name));
    named.map(|system| Ok(system?.name())).collect()
}

fn chosen_panels(args: &Args) -> anyhow::Result<Vec<&'static Panel>> {
    let known = || PANELS.iter().map(|panel| panel.part);
    for part in &args.parts {
        ensure!(
            known().any(|known| known == part),
            "no part {part:?}; there are {}",
            known().collect::<Vec<_>>().join(", ")
        );
    }
    let quick = ["12a", "12d", "17"];
    let wanted = |panel: &&Panel| match (args.parts.is_empty(), args.run.quick) {
        (true, true) => quick.contains(&panel.part),
        (true, false) => true,
        (false, _) => args.parts.iter().any(|part| part == panel.part),
    };
    Ok(PANELS.iter().filter(wanted).collect())
}

fn describe(seeds: &[u32]) -> Experiment {
    let mut experiment = Experiment::simulated(NAME, "Rates sustained");
    experiment.figures = vec!["Fig 12".into(), "Fig 17".into()];
    experiment.parameter("seeds", format!("{seeds:?}"));
    experiment.parameter("warm-up, s", 60usize);
    experiment.paper = "Requests arrive at random at a given rate, for an hour (15 minutes for OPT-175B). \
        The mean over requests of their time from arrival to end, over their output tokens, grows slowly \
        with the rate, and then without bound: the rate at which it does so is what a system sustains."
        .into();
    experiment.ours = "The artifact's arrivals and lengths, redrawn, through Pageloom's scheduler and \
        block manager, under each system's rules. `ft` forms padded batches of whole requests; the three \
        Orca systems reserve memory for whole requests; `paged` is the paper's own policy. The time of a \
        step is modelled, from figures 1 and 19a and, for the larger models, the unloaded latency; no knee \
        of figure 12 was looked at. The rate is searched at which the latency reaches 0.2 and 0.5 s a \
        token, for each seed. Alpaca: ten minutes (the artifact's default) of 5,000 rows, taken again and \
        again. Chatbot: the last 1,024 tokens of a conversation and up to 1,024 of answer."
        .into();
    experiment.notes = NOTES.map(str::to_owned).into();
    experiment
}

const NOTES: [&str; 3] = [
    "ShareGPT: the order and the ratios of the systems come out, and the knees of the larger models, whose \
     step times have one figure of the paper in them each, are within a sixth of the paper's. The 13B's are \
     right of it by 8 to 32 %: the model's step leaves out what the paper's engine did between figures 1 and \
     12, such as taking requests in and sending answers out.",
    "Alpaca: knees lie right of the paper's, the more the larger a system's batches: its requests are short \
     and come 30 a second, so what they cost apart from their tokens decides. That cost is in neither figure \
     1 nor 19a, whose batches are at most 40 (see batch-size); it is left out, not fitted here. Of OPT-175B \
     `orca-oracle` and `paged` are so near each other in the paper because time decides there, not memory.",
    "`ft` is left of the paper's, far so for the larger models. All answers of its batch leave together here, as \
     request-level batches mean, and a short answer then waits for the longest. If each left with its own \
     last token, ShareGPT's knees at 0.5 s would be about 0.21, 0.05 and 0.09 req/s, beside the paper's 0.24, \
     0.10 and 0.11.",
];

fn table(panel: &Panel, rows: &[Row<'_>]) -> Table {
    let columns = [
        ("system", 0),
        ("seed 0 at 0.2 s, req/s", 2),
        ("mean at 0.2 s", 2),
        ("seed 0 at 0.5 s, req/s", 2),
        ("mean at 0.5 s", 2),
        ("seeds at 0.5 s", 0),
        ("paper at 0.5 s", 2),
        ("difference, %", 0),
    ];
    let mut table = Table::new(panel.title(), &columns);
    for row in rows {
        let first = row.found.first().map_or([f64::NAN; 2], |found| found.knees);
        let (mean, least, greatest) = row.knee(1);
        let paper = panel.paper_of(row.system);
        table.rows.push(vec![
            row.system.into(),
            Cell::Number(first[0]),
            Cell::Number(row.knee(0).0),
            Cell::Number(first[1]),
            Cell::Number(mean),
            Cell::Text(format!("{least:.2} to {greatest:.2}")),
            paper.into(),
            paper.map(|paper| 100.0 * (mean / paper - 1.0)).into(),
        ]);
    }
    table
}

fn plot(panel: &Panel, rows: &[Row<'_>]) -> Plot {
    let systems = rows.iter().map(|row| Drawn {
        system: row.system,
        curve: &row.found[0].curve,
        paper: panel.paper_of(row.system),
    });
    latency_plot(panel.part, panel.title(), systems)
}

fn checks(panel: &Panel, rows: &[Row<'_>]) -> Vec<Check> {
    let mut checks = Vec::new();
    let is_papers = rows.iter().map(|row| row.system).eq(SYSTEMS);
    if is_papers {
        let ratios = rows.windows(2).map(|pair| {
            let [before, after] = [&pair[0], &pair[1]].map(|row| row.knee(1).0);
            after / before
        });
        let least = ratios.fold(f64::INFINITY, f64::min);
        let name = format!(
            "{}: ft < orca-max < orca-pow2 < orca-oracle < paged at 0.5 s, least ratio of neighbours",
            panel.title()
        );
        checks.push(Check::new(name, least, Bound::AtLeast(1.0)).required());
    }
    let of = |system: &str| rows.iter().find(|row| row.system == system);
    if let (Some(oracle), Some(paged)) = (of("orca-oracle"), of("paged")) {
        let paper = (panel.paper_of("paged"), panel.paper_of("orca-oracle"));
        for (at, threshold) in THRESHOLDS.into_iter().enumerate() {
            let is_accepted = panel.part == "12a" && threshold == 0.5;
            let bound = match is_accepted {
                true => Bound::Between(1.5, 2.0),
                false => Bound::AtLeast(1.0),
            };
            let name = format!("{}: paged over orca-oracle at {threshold} s", panel.title());
            let check = Check::new(name, paged.knee(at).0 / oracle.knee(at).0, bound);
            let check = match is_accepted {
                true => check.required(),
                false => check,
            };
            checks.push(match (threshold, paper) {
                (0.5, (Some(paged), Some(oracle))) => check.paper(paged / oracle),
                _ => check,
            });
        }
    }
    checks
}
