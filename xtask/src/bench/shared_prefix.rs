//! Translations behind examples that all prompts begin with, figure 16 of the paper, simulated.

use std::path::PathBuf;

use super::experiment::{Bound, Cell, Check, Experiment, Plot, RunArgs, Table};
use super::measured;
use super::paper::dataset::Data;
use super::paper::machine::Model;
use super::paper::sweep::{Drawn, Found, Task, latency_plot, spread, sweep};
use super::resume::{Points, num_threads};

pub(crate) const NAME: &str = "shared-prefix";

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    run: RunArgs,
    /// A model to measure on, on this machine; without it the paper's is simulated
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
}

/// One of the figure's two plots.
struct Panel {
    figure: &'static str,
    prefix: u32,
    /// Rates of [`BASE`] and of the paper's system at 0.5 s a token, read off.
    paper: [f64; 2],
    /// What the text says their ratio is.
    ratio: f64,
}

const PANELS: [Panel; 2] = [
    Panel {
        figure: "16a",
        prefix: 80,
        paper: [30.1, 50.9],
        ratio: 1.67,
    },
    Panel {
        figure: "16b",
        prefix: 341,
        paper: [12.1, 42.7],
        ratio: 3.58,
    },
];

/// What others are compared with, and what does as the paper's system does.
const BASE: &str = "orca-oracle";
const SHARING: &str = "prefix-caching";
const SYSTEMS: [(&str, &str); 4] = [
    (BASE, "computes and keeps the prefix for each request"),
    ("paged", "the same, in pages: shares nothing"),
    (SHARING, "the paper's policy, and prefixes are found again"),
    ("pageloom", "that, chunked prefill and int8 pages"),
];

const SEEDS: [u32; 3] = [0, 1, 2];

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(model) = &args.model {
        return measured::prefix::experiment(NAME, model, &args.run)?.publish(&args.run);
    }
    experiment(&args.run)?.publish(&args.run)
}

pub(crate) fn experiment(run: &RunArgs) -> anyhow::Result<Experiment> {
    // The artifact's 20 minutes.
    let (seeds, duration_s) = match run.quick {
        true => (&SEEDS[..1], 150.0),
        false => (&SEEDS[..], 1200.0),
    };
    let points = Points::open(NAME, run)?;
    let mut tasks = Vec::new();
    for panel in &PANELS {
        let task = |system, seed| Task {
            model: Model::Opt13b,
            data: Data::Translation {
                prefix: panel.prefix,
            },
            system,
            num_seqs: 1,
            renewal: None,
            duration_s,
            seed,
            near: panel.paper[usize::from(system != BASE)],
        };
        for (system, _) in SYSTEMS {
            tasks.extend(seeds.iter().map(|&seed| task(system, seed)));
        }
    }
    let found = sweep(&points, &tasks, num_threads())?;
    let mut experiment = describe(seeds, duration_s);
    for (panel, found) in PANELS.iter().zip(found.chunks(SYSTEMS.len() * seeds.len())) {
        let rows: Vec<Row<'_>> = SYSTEMS
            .map(|(name, _)| name)
            .into_iter()
            .zip(found.chunks(seeds.len()))
            .collect();
        experiment.tables.push(table(panel, &rows));
        experiment.plots.push(plot(panel, &rows));
        experiment.checks.extend(check(panel, &rows));
    }
    experiment.points = points.into_files();
    Ok(experiment)
}

/// A system and its curves, one for each seed.
type Row<'a> = (&'static str, &'a [Found]);

/// Rates at which each of [`THRESHOLDS`](super::paper::sweep::THRESHOLDS) is crossed: mean, least and greatest over the seeds.
fn knees(found: &[Found]) -> [(f64, f64, f64); 2] {
    [0, 1].map(|at| {
        spread(
            &found
                .iter()
                .map(|found| found.knees[at])
                .collect::<Vec<_>>(),
        )
    })
}

impl Panel {
    fn title(&self) -> String {
        format!("Fig {}: a prefix of {} tokens", self.figure, self.prefix)
    }

    fn paper_of(&self, system: &str) -> Option<f64> {
        match system {
            BASE => Some(self.paper[0]),
            SHARING => Some(self.paper[1]),
            _ => None,
        }
    }
}

fn describe(seeds: &[u32], duration_s: f64) -> Experiment {
    let mut experiment = Experiment::simulated(NAME, "A prefix that all requests share");
    experiment.figures = vec!["Fig 16".into()];
    experiment.parameter("model", "LLaMA-13B, of OPT-13B's shape");
    experiment.parameter("trace, s", duration_s);
    experiment.parameter("seeds", format!("{seeds:?}"));
    experiment.paper = "English sentences (WMT16) are translated to German, behind one example (80 tokens) or \
        five (341), which the paper's system keeps once for all requests and never computes again. It \
        sustains 1.67 and 3.58 times the rate of Orca (Oracle)."
        .into();
    experiment.ours = "The same machine and prefixes. The lengths of the sentences are not those of WMT16: \
        3,000 pairs are drawn, a sentence log-normal with a median of 28 tokens (deviation of the logarithm \
        0.55, mean 33), its translation 1.15 times as long in the median (0.25, mean 39). Nobody names the \
        prefix: the first request leaves its full blocks in the cache, where the others find them, and \
        being always in use they are never evicted. A block that the prefix fills only in part is not shared."
        .into();
    experiment.notes = NOTES.map(str::to_owned).into();
    experiment
}

const NOTES: [&str; 3] = [
    "Most is gained by not computing the prefix again, with the longer prefix above all, and the rest by not \
     keeping it again: `paged`, which shares nothing, is little better than Orca.",
    "The ratio is greater than the paper's at 80 tokens and less at 341. Sentences here are drawn, and what a \
     short request costs apart from its tokens is in no figure the step times are from (see throughput, \
     Alpaca), so the checks allow a quarter and are not required.",
    "`pageloom` computes at most 160 tokens a step, which also caps its sequences: prompts of only 33 tokens \
     gain nothing from being computed in parts, and with the shorter prefix hundreds of sequences fit, more \
     than that cap. It is then behind the paper's own policy with caching.",
];

fn table(panel: &Panel, rows: &[Row<'_>]) -> Table {
    let columns = [
        ("system", 0),
        ("at 0.2 s, req/s", 1),
        ("over orca-oracle", 2),
        ("at 0.5 s, req/s", 1),
        ("seeds at 0.5 s", 0),
        ("over orca-oracle", 2),
        ("paper at 0.5 s", 1),
        ("paper over orca-oracle", 2),
        ("", 0),
    ];
    let mut table = Table::new(panel.title(), &columns);
    let base = knees(rows[0].1);
    for (&(system, found), (_, about)) in rows.iter().zip(SYSTEMS) {
        let [low, high] = knees(found);
        let ratio = match system {
            SHARING => Some(panel.ratio),
            _ => None,
        };
        table.rows.push(vec![
            system.into(),
            Cell::Number(low.0),
            Cell::Number(low.0 / base[0].0),
            Cell::Number(high.0),
            Cell::Text(format!("{:.1} to {:.1}", high.1, high.2)),
            Cell::Number(high.0 / base[1].0),
            panel.paper_of(system).into(),
            ratio.into(),
            about.into(),
        ]);
    }
    table
}

fn plot(panel: &Panel, rows: &[Row<'_>]) -> Plot {
    let systems = rows.iter().map(|(system, found)| Drawn {
        system,
        curve: &found[0].curve,
        paper: panel.paper_of(system),
    });
    latency_plot(panel.figure, panel.title(), systems)
}

/// Shown beside the paper's, not required: the lengths are not its own.
fn check(panel: &Panel, rows: &[Row<'_>]) -> Option<Check> {
    let of = |wanted: &str| rows.iter().find(|(system, _)| *system == wanted);
    let (base, sharing) = (of(BASE)?.1, of(SHARING)?.1);
    let name = format!("{}: {SHARING} over {BASE} at 0.5 s", panel.title());
    let ratio = knees(sharing)[1].0 / knees(base)[1].0;
    let check = Check::new(name, ratio, Bound::WithinPercent(25.0));
    Some(check.paper(panel.ratio).unit("times"))
}
