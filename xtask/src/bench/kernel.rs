//! What pages cost attention: the same kernel over keys that lie in order and over shuffled pages, the
//! paper's figure 18a, on the CPU or a GPU.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use pageloom_paged_attn_kernels::KvDtype;
use pageloom_paged_attn_kernels::cpu::ThreadPool;
use pageloom_paged_attn_kernels::cuda::Device;
use serde::{Deserialize, Serialize};

use super::experiment::{
    Axis, Basis, Bound, Cell, Check, Experiment, Machine, Plot, PlotKind, RunArgs, Series, Source,
    Table,
};
use super::kernels::attention::{CONTIGUOUS as GPU_CONTIGUOUS, Decodes, contiguous_and_paged};
use super::resume::Points;
use super::workload::{Blocks, Model, Order, Sequences, Workload};

/// Tokens of a page: the paper's default.
const PAGE: usize = 16;
/// Tokens of a contiguous block: as many as the cache allows, so that tables cost least.
const CONTIGUOUS: usize = 256;
const SEED: u64 = 1;
/// A sample takes at least this long; short steps are repeated.
const SAMPLE: Duration = Duration::from_millis(2);
const MAX_CONTEXT: usize = 1 << 17;

/// Of figure 18a, read off the plot: batch size, context, microseconds of vLLM and FasterTransformer.
const PAPER: [(usize, usize, f64, f64); 6] = [
    (8, 64, 32.0, 22.0),
    (8, 128, 44.0, 35.0),
    (8, 256, 84.0, 62.0),
    (32, 64, 77.0, 61.0),
    (32, 128, 127.0, 106.0),
    (32, 256, 235.0, 194.0),
];

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    run: RunArgs,
    /// Where: the CPU, or the first GPU
    #[arg(long, value_enum, default_value_t = On::Cpu)]
    device: On,
    /// Tokens that each sequence attends to, with commas between
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "LENGTHS",
        default_value = "64,128,256,512,1024,2048,8192,32768"
    )]
    contexts: Vec<usize>,
    /// Sequences of a step, with commas between
    #[arg(long, value_delimiter = ',', value_name = "SIZES", default_value = "8,32", value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch_sizes: Vec<u16>,
    /// Query heads
    #[arg(long, default_value_t = 9)]
    num_heads: usize,
    /// Key-value heads
    #[arg(long, default_value_t = 3)]
    num_kv_heads: usize,
    /// Elements a head
    #[arg(long, default_value_t = 64)]
    head_dim: usize,
    /// Threads [default: one per core]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Rounds, in each of which both have their turn; the medians are told
    #[arg(long, default_value_t = 41, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Points that need more memory than this are left out
    #[arg(long, default_value_t = 8.0)]
    memory_gib: f64,
}

#[derive(clap::ValueEnum, Serialize, Clone, Copy, PartialEq, Eq)]
enum On {
    Cpu,
    Cuda,
}

/// One point: a step of equal sequences.
#[derive(Serialize, Clone, Copy)]
struct Point {
    device: On,
    batch_size: usize,
    context: usize,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    num_threads: usize,
    rounds: u16,
}

/// Medians over rounds, of one layer.
#[derive(Serialize, Deserialize, Clone, Copy)]
struct Times {
    contiguous_us: f64,
    paged_us: f64,
    /// Of the rounds' ratios, paged over contiguous.
    ratio: f64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let too_long = args
        .contexts
        .iter()
        .find(|n| !(1..=MAX_CONTEXT).contains(*n));
    if let Some(context) = too_long {
        bail!("--contexts: {context} is not from 1 to {MAX_CONTEXT}");
    }
    let points = points(args);
    ensure!(
        !points.is_empty(),
        "--memory-gib: no point fits {} GiB",
        args.memory_gib
    );
    let gpu = match args.device {
        On::Cuda => Some(Device::open(0).context("--device cuda")?),
        On::Cpu => None,
    };
    let saved = Points::open("kernel", &args.run)?;
    let times = saved.all(&points, 1, |point| match &gpu {
        Some(gpu) => measure_on_gpu(gpu, point),
        None => measure(point),
    })?;
    let rows: Vec<(Point, Times)> = points.iter().copied().zip(times).collect();
    let mut experiment = experiment(args, &rows);
    if let Some(gpu) = &gpu {
        let properties = gpu.properties();
        let (major, minor) = properties.capability;
        experiment.name = "kernel-cuda".to_owned();
        experiment.command += " --device cuda";
        experiment.basis = Basis::Measured(Machine {
            arch: properties.name.clone(),
            num_cores: properties.num_sms as usize,
            instructions: format!("compute capability {major}.{minor}"),
        });
    }
    experiment.publish(&args.run)?;
    saved.forget()
}

/// Those that fit the memory.
fn points(args: &Args) -> Vec<Point> {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut points = Vec::new();
    for &batch_size in &args.batch_sizes {
        for &context in &args.contexts {
            points.push(Point {
                device: args.device,
                batch_size: batch_size.into(),
                context,
                num_heads: args.num_heads,
                num_kv_heads: args.num_kv_heads,
                head_dim: args.head_dim,
                num_threads: args.threads.map_or(cores, usize::from),
                rounds: if args.run.quick {
                    args.rounds.min(11)
                } else {
                    args.rounds
                },
            });
        }
    }
    let most = if args.run.quick { 2048 } else { MAX_CONTEXT };
    points.retain(|point| point.context <= most && point.gib() <= args.memory_gib);
    points
}

impl Point {
    /// About: two caches of 4 layers in bf16, keys and values, and a layer's random numbers in f32.
    fn gib(&self) -> f64 {
        let tokens = self.batch_size * self.context.next_multiple_of(CONTIGUOUS);
        let numbers = (tokens * self.num_kv_heads * self.head_dim) as f64;
        numbers * (2.0 * 4.0 * 2.0 * 2.0 + 4.0) / f64::from(1 << 30)
    }
}

fn measure(point: &Point) -> anyhow::Result<Times> {
    let pool = ThreadPool::new(point.num_threads);
    let model = Model {
        num_heads: point.num_heads,
        num_kv_heads: point.num_kv_heads,
        head_dim: point.head_dim,
        dtype: KvDtype::Bf16,
    };
    let sequences = Sequences {
        context_lens: vec![point.context; point.batch_size],
        num_queries: 1,
    };
    let with = |size, order| Workload::new(&pool, model, Blocks { size, order }, &sequences);
    let mut contiguous = with(CONTIGUOUS, Order::Contiguous)?;
    let mut paged = with(PAGE, Order::Shuffled(SEED))?;
    // Warms up, and tells how often a sample repeats the step.
    let began = Instant::now();
    contiguous.run(&pool)?;
    paged.run(&pool)?;
    let once = began.elapsed().as_secs_f64() / 2.0;
    let repeats = (SAMPLE.as_secs_f64() / once).ceil().clamp(1.0, 1e4) as usize;
    let sample = |workload: &mut Workload| -> anyhow::Result<f64> {
        let mut sum = 0.0;
        for _ in 0..repeats {
            sum += workload.run(&pool)?;
        }
        Ok(sum / repeats as f64)
    };
    let (mut ordered, mut shuffled, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..point.rounds {
        // Who comes first changes: the second may find a warmer machine.
        let (a, b) = if round % 2 == 0 {
            let a = sample(&mut contiguous)?;
            (a, sample(&mut paged)?)
        } else {
            let b = sample(&mut paged)?;
            (sample(&mut contiguous)?, b)
        };
        ordered.push(a);
        shuffled.push(b);
        ratios.push(b / a);
    }
    Ok(Times {
        contiguous_us: median(ordered),
        paged_us: median(shuffled),
        ratio: median(ratios),
    })
}

fn measure_on_gpu(gpu: &Device, point: &Point) -> anyhow::Result<Times> {
    let decodes = Decodes {
        num_heads: point.num_heads,
        num_kv_heads: point.num_kv_heads,
        head_dim: point.head_dim,
        batch: point.batch_size,
        context: point.context,
    };
    let [contiguous_ms, paged_ms] = contiguous_and_paged(gpu, decodes)?;
    Ok(Times {
        contiguous_us: 1e3 * contiguous_ms,
        paged_us: 1e3 * paged_ms,
        ratio: paged_ms / contiguous_ms,
    })
}

pub(crate) fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_unstable_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}

fn paper_overhead(batch_size: usize, context: usize) -> Option<f64> {
    let at = PAPER
        .iter()
        .find(|row| (row.0, row.1) == (batch_size, context));
    at.map(|(_, _, paged, contiguous)| 100.0 * (paged / contiguous - 1.0))
}

fn experiment(args: &Args, rows: &[(Point, Times)]) -> Experiment {
    let mut results =
        Experiment::measured("kernel", "Attention over pages against contiguous keys");
    results.figures = vec!["Fig 18a".to_owned()];
    results.paper =
        "One attention kernel of vLLM over pages of 16 tokens beside FasterTransformer's \
        over contiguous keys, on an A100: 20 to 26 % slower by the text, 19 to 45 % by the figure."
            .to_owned();
    let (contiguous, samples) = match args.device {
        On::Cpu => (
            CONTIGUOUS,
            "samples of both alternate, four layers in turn so that none is found in the cache of the \
             run before. The median of the rounds' ratios is told.",
        ),
        On::Cuda => (
            GPU_CONTIGUOUS,
            "graphs of launches over so many copies of the data that they do not fit the second cache \
             level. Medians of the runs are told.",
        ),
    };
    results.ours = format!(
        "The same kernel twice, so that pages are all that differs: over blocks of {contiguous} tokens \
         that lie in order, and over shuffled pages of {PAGE}. One decode step, one token a sequence, \
         bf16; {samples}"
    );
    for (name, value) in [
        ("query heads", args.num_heads),
        ("key-value heads", args.num_kv_heads),
        ("head size", args.head_dim),
        (
            "rounds",
            rows.first().map_or(0, |(point, _)| point.rounds.into()),
        ),
        (
            "threads",
            rows.first().map_or(0, |(point, _)| point.num_threads),
        ),
    ] {
        results.parameter(name, value);
    }
    results.tables.push(table(rows));
    results.plots.push(plot(args, rows));
    results.plots.extend(beside_paper(rows));
    for &batch_size in &args.batch_sizes {
        results.checks.extend(check(batch_size.into(), rows));
    }
    results.notes.push(
        "A difference of 1 us is several percent of the shortest steps. From 512 to 8,192 tokens, differences \
         of either sign change from run to run. At 32,768, where a layer's step reads hundreds of megabytes, \
         pages cost some 6 to 12 % in every run."
            .into(),
    );
    let left_out = args.contexts.len() * args.batch_sizes.len() - rows.len();
    if left_out > 0 {
        results.notes.push(format!(
            "{left_out} points are left out: they are not of the quick version or need more than {} GiB.",
            args.memory_gib
        ));
    }
    results
}

fn overhead(times: &Times) -> f64 {
    100.0 * (times.ratio - 1.0)
}

fn table(rows: &[(Point, Times)]) -> Table {
    let mut table = Table::new(
        "Microseconds of one layer, and what pages cost.",
        &[
            ("sequences", 0),
            ("context", 0),
            ("contiguous, us", 1),
            ("paged, us", 1),
            ("overhead, %", 1),
            ("paper's overhead, %", 0),
        ],
    );
    for (point, times) in rows {
        table.rows.push(vec![
            Cell::from(point.batch_size),
            point.context.into(),
            times.contiguous_us.into(),
            times.paged_us.into(),
            overhead(times).into(),
            paper_overhead(point.batch_size, point.context).into(),
        ]);
    }
    table
}

fn plot(args: &Args, rows: &[(Point, Times)]) -> Plot {
    let mut series = Vec::new();
    for batch_size in args.batch_sizes.iter().map(|&n| usize::from(n)) {
        let name = format!("{batch_size} sequences");
        let ours = rows
            .iter()
            .filter(|(point, _)| point.batch_size == batch_size);
        series.push(Series {
            name: name.clone(),
            source: Source::Measured,
            points: ours
                .map(|(p, times)| (p.context as f64, overhead(times)))
                .collect(),
        });
        let papers = PAPER.iter().filter(|row| row.0 == batch_size);
        let points = papers.filter_map(|row| Some((row.1 as f64, paper_overhead(row.0, row.1)?)));
        let points: Vec<(f64, f64)> = points.collect();
        if !points.is_empty() {
            series.push(Series {
                name,
                source: Source::Paper("Fig 18a".to_owned()),
                points,
            });
        }
    }
    Plot {
        name: "overhead".to_owned(),
        title: "What pages cost the attention kernel".to_owned(),
        caption: format!(
            "Time over shuffled pages of {PAGE} tokens, above that over contiguous keys: ours with the \
             same kernel, the paper's against FasterTransformer's."
        ),
        kind: PlotKind::Lines,
        x: Axis::log("context (tokens)"),
        y: Axis::linear("overhead (%)"),
        series,
        thresholds: Vec::new(),
    }
}

/// Bars at the points that the paper has.
fn beside_paper(rows: &[(Point, Times)]) -> Option<Plot> {
    let both = rows.iter().filter_map(|(point, times)| {
        let paper = paper_overhead(point.batch_size, point.context)?;
        let name = format!("{} x {}", point.batch_size, point.context);
        Some((name, paper, overhead(times)))
    });
    let both: Vec<(String, f64, f64)> = both.collect();
    let names: Vec<&str> = both.iter().map(|(name, ..)| name.as_str()).collect();
    let series = |source, of: fn(&(String, f64, f64)) -> f64| Series {
        name: "overhead of pages".to_owned(),
        source,
        points: (0..)
            .zip(&both)
            .map(|(i, b)| (f64::from(i), of(b)))
            .collect(),
    };
    let plot = Plot {
        name: "paper".to_owned(),
        title: "What pages cost, at the paper's points".to_owned(),
        caption: "Names are sequences x context.".to_owned(),
        kind: PlotKind::Bars,
        x: Axis::categories("sequences x context (tokens)", &names),
        y: Axis::linear("overhead (%)"),
        series: vec![
            series(Source::Paper("Fig 18a".to_owned()), |b| b.1),
            series(Source::Measured, |b| b.2),
        ],
        thresholds: Vec::new(),
    };
    (!names.is_empty()).then_some(plot)
}

/// The mean over the contexts that the paper has, and the most at any.
fn check(batch_size: usize, rows: &[(Point, Times)]) -> Vec<Check> {
    let ours = rows
        .iter()
        .filter(|(point, _)| point.batch_size == batch_size);
    let ours: Vec<(Option<f64>, f64)> = ours
        .map(|(p, times)| (paper_overhead(batch_size, p.context), overhead(times)))
        .collect();
    let both: Vec<(f64, f64)> = ours.iter().filter_map(|&(p, o)| Some((p?, o))).collect();
    let mean = |numbers: &mut dyn Iterator<Item = f64>| numbers.sum::<f64>() / both.len() as f64;
    let mut checks = Vec::new();
    if !both.is_empty() {
        let (paper, ours) = (
            mean(&mut both.iter().map(|b| b.0)),
            mean(&mut both.iter().map(|b| b.1)),
        );
        let name = format!("{batch_size} sequences, contexts 64 to 256: overhead of pages");
        checks.push(
            Check::new(name, ours, Bound::AtMost(5.0))
                .paper(paper)
                .unit("%"),
        );
    }
    if let Some(most) = ours.iter().map(|(_, o)| *o).max_by(f64::total_cmp) {
        let name = format!("{batch_size} sequences, any context: overhead of pages");
        checks.push(Check::new(name, most, Bound::AtMost(5.0)).unit("%"));
    }
    checks
}
