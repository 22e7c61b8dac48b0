//! Pageloom beside its peers on this machine's CPU, in one run: speed, and the accuracy it is had
//! at; memory, start-up, scaling, and how far all of it is from what the machine can do.
//!
//! ```text
//! rounds:  machine's limits, ours, ours on 1 thread, other modes, peer A, peer B, ... and again
//! then:    answers beside references; a server's memory; its start; the profile
//! ```

mod accuracy;
mod child;
mod large;
mod memory;
mod peers;
mod profile;
mod roofline;
mod server;
mod tables;
mod targets;
mod throughput;

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use pageloom_model_runner::Checkpoint;

pub(crate) use self::large::{Args as LargeArgs, run as run_large};

use self::accuracy::{Accuracy, References};
use self::peers::{Engine, Id};
use self::tables::Figure;
use self::throughput::{Rate, Rounds};

/// Modes of Pageloom beside the default one.
const MODES: [&str; 2] = ["--dtype f32", "--kv-cache-dtype int8"];
/// Starts of a server.
const STARTS: usize = 5;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The model: a GGUF file, which llama.cpp is given too
    #[arg(long)]
    model: PathBuf,
    /// Rounds, of which medians are told
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    runs: u16,
    /// Threads of each engine [default: one per core]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Numbers of requests submitted at once [default: 1,8,32,64]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=256))]
    batch_sizes: Vec<u16>,
    /// One round of batch sizes 1 and 32, the default mode alone, one start: about a minute
    #[arg(long)]
    quick: bool,
    /// Another mode of Pageloom to compare, by its flags; several are allowed, in place of
    /// "--dtype f32" and "--kv-cache-dtype int8"
    #[arg(long, value_name = "FLAGS", allow_hyphen_values = true)]
    mode: Vec<String>,
    /// The pageloom to run [default: the one beside this program]
    #[arg(long, value_name = "PATH")]
    pageloom: Option<PathBuf>,
    /// A Python that has openvino-genai
    #[arg(long, env = "PAGELOOM_BENCH_OPENVINO", value_name = "PYTHON")]
    openvino: Option<PathBuf>,
    /// llama.cpp's llama-batched-bench
    #[arg(long, env = "PAGELOOM_BENCH_LLAMA", value_name = "PATH")]
    llama_batched_bench: Option<PathBuf>,
    /// The same model in Q8_0, for the peers
    #[arg(long, env = "PAGELOOM_BENCH_Q8", value_name = "FILE")]
    peer_model_q8: Option<PathBuf>,
    /// The same model in Q4_0, for the peers
    #[arg(long, env = "PAGELOOM_BENCH_Q4", value_name = "FILE")]
    peer_model_q4: Option<PathBuf>,
    /// Recorded answers of the model in f32 [default: the model runner's fixture]
    #[arg(long, value_name = "FILE")]
    references: Option<PathBuf>,
    /// Print where the time of each phase goes, by operation
    #[arg(long)]
    profile: bool,
    /// File for all numbers, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What is run, and on what.
struct Setup {
    /// Of the workspace.
    root: PathBuf,
    model: PathBuf,
    pageloom: PathBuf,
    openvino: Option<PathBuf>,
    llama_batched_bench: Option<PathBuf>,
    peer_model_q8: Option<PathBuf>,
    peer_model_q4: Option<PathBuf>,
    references: PathBuf,
    runs: usize,
    threads: usize,
    batch_sizes: Vec<usize>,
    /// Flags of each mode; the first has none.
    modes: Vec<String>,
    /// Whether one thread is timed too.
    scaling: bool,
}

impl Setup {
    fn new(args: &Args) -> anyhow::Result<Setup> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
        let root = root
            .context("xtask lies in the workspace's root")?
            .to_owned();
        let pageloom = match &args.pageloom {
            Some(path) => path.clone(),
            None => beside_this_program()?,
        };
        ensure!(
            pageloom.is_file(),
            "{} is not there: cargo build --release -p pageloom, or --pageloom PATH",
            pageloom.display()
        );
        for file in [
            Some(&args.model),
            args.peer_model_q8.as_ref(),
            args.peer_model_q4.as_ref(),
        ] {
            let missing = file.filter(|file| !file.is_file());
            ensure!(
                missing.is_none(),
                "{} is no file",
                missing.map_or("".into(), |f| f.display().to_string())
            );
        }
        let fixture = || root.join("model-runner/tests/fixtures/smollm2.json");
        let references = args.references.clone().unwrap_or_else(fixture);
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        let others = match (args.mode.as_slice(), args.quick) {
            ([], true) => Vec::new(),
            ([], false) => MODES.map(str::to_owned).to_vec(),
            (modes, _) => modes.to_vec(),
        };
        let mut batch_sizes: Vec<usize> = args.batch_sizes.iter().map(|&n| n.into()).collect();
        if batch_sizes.is_empty() {
            batch_sizes = if args.quick {
                vec![1, 32]
            } else {
                vec![1, 8, 32, 64]
            };
        }
        batch_sizes.sort_unstable();
        batch_sizes.dedup();
        Ok(Setup {
            references,
            root,
            model: args.model.clone(),
            pageloom,
            openvino: args.openvino.clone(),
            llama_batched_bench: args.llama_batched_bench.clone(),
            peer_model_q8: args.peer_model_q8.clone(),
            peer_model_q4: args.peer_model_q4.clone(),
            runs: if args.quick { 1 } else { args.runs.into() },
            threads: args.threads.map_or(threads, usize::from),
            batch_sizes,
            modes: [vec![String::new()], others].concat(),
            scaling: !args.quick,
        })
    }

    /// The largest batch size, which most is told of.
    fn largest(&self) -> usize {
        self.batch_sizes.iter().copied().max().unwrap_or(1)
    }

    /// The file that a peer is given, if there is one.
    fn peer_model(&self, id: Id) -> Option<&Path> {
        match id {
            Id::OpenVinoQ8 | Id::LlamaCppQ8 => self.peer_model_q8.as_deref(),
            Id::OpenVinoQ4 | Id::LlamaCppQ4 => self.peer_model_q4.as_deref(),
            Id::LlamaCppSame | Id::Pageloom(_) | Id::PageloomOneThread => Some(&self.model),
        }
    }
}

fn beside_this_program() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("this program has no path")?;
    Ok(program.with_file_name(format!("pageloom{}", std::env::consts::EXE_SUFFIX)))
}

/// Runs everything. A peer that is missing or dies is told of, and costs nothing else.
///
/// # Errors
/// If Pageloom itself or the model is missing, or the references are wrong.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let setup = Setup::new(args)?;
    let config = Checkpoint::open(&setup.model)?.config().clone();
    let references = References::read(&setup.references)?;
    let (mut engines, missing) = peers::find(&setup);
    for line in &missing {
        println!("{line}");
    }
    let rounds = throughput::run(&setup, &mut engines);
    throughput::print(&setup, &engines, &rounds);
    let accuracies = measure_accuracy(&setup, &engines, &references);
    print_modes(&setup, &engines, &rounds, &accuracies);
    let memory = told("memory", memory::measure(&setup));
    if let Some(memory) = &memory {
        print_memory(memory, &engines, &rounds);
    }
    let starts = if args.quick { 1 } else { STARTS };
    let startup = told("start-up", memory::startup(&setup, starts));
    let weights = memory.as_ref().map(|memory| memory.weights);
    roofline::print(&setup, &config, &rounds, weights);
    if args.profile {
        told("profile", profile::run(&setup));
    }
    let measured = targets::Measured {
        rounds: &rounds,
        memory: memory.as_ref(),
        startup: startup.as_ref(),
        accuracy: accuracies
            .iter()
            .find(|(id, _)| *id == Id::Pageloom(0))
            .map(|(_, a)| a),
    };
    targets::print(&setup, &measured);
    match &args.json {
        None => Ok(()),
        Some(path) => write_json(path, &setup, &engines, &accuracies, &measured),
    }
}

/// A section that failed is told of, and the run goes on.
fn told<T>(section: &str, outcome: anyhow::Result<T>) -> Option<T> {
    outcome
        .map_err(|error| println!("\n{section}: not measured: {error:#}"))
        .ok()
}

/// Accuracy of each engine that can tell it.
fn measure_accuracy(
    setup: &Setup,
    engines: &[Engine],
    references: &References,
) -> Vec<(Id, Accuracy)> {
    let mut accuracies = Vec::new();
    for engine in engines.iter().filter(|engine| engine.failure.is_none()) {
        eprintln!("accuracy: {}", engine.name);
        let accuracy = match engine.id {
            Id::Pageloom(mode) => {
                let flags: Vec<String> = setup.modes[mode]
                    .split_whitespace()
                    .map(str::to_owned)
                    .collect();
                Some(accuracy::of_pageloom(setup, &flags, references))
            }
            // The default mode: threads change no number.
            Id::PageloomOneThread => None,
            _ => accuracy::of_peer(setup, engine, references),
        };
        let accuracy =
            accuracy.and_then(|outcome| told(&format!("accuracy of {}", engine.name), outcome));
        accuracies.extend(accuracy.map(|accuracy| (engine.id, accuracy)));
    }
    accuracies
}

/// Speed and accuracy side by side.
fn print_modes(setup: &Setup, engines: &[Engine], rounds: &Rounds, accuracies: &[(Id, Accuracy)]) {
    let mut rows = Vec::new();
    let largest = setup.largest();
    let mut remarks = Vec::new();
    for engine in engines {
        let rate = |batch_size, rate| rounds.rate(engine.id, batch_size, rate).show(0);
        if engine.id == Id::PageloomOneThread || rounds.rate(engine.id, 1, Rate::All).is_empty() {
            continue;
        }
        let mut row = vec![
            engine.name.clone(),
            rate(1, Rate::Decode),
            rate(largest, Rate::All),
        ];
        let accuracy = accuracies.iter().find(|(id, _)| *id == engine.id);
        match accuracy {
            None => row.extend(std::iter::repeat_n("-".to_owned(), 4)),
            Some((_, accuracy)) => {
                row.extend(accuracy.cells());
                let told = accuracy.remarks().into_iter();
                remarks.extend(told.map(|remark| format!("{}: {remark}", engine.name)));
            }
        }
        rows.push(row);
    }
    let at_once = format!("all, {largest} at once");
    let header = [
        "engine",
        "one stream, decode",
        &at_once,
        "mean difference",
        "best equal",
        "divergence",
        "sentences",
    ];
    tables::print("Speed and accuracy", &header, &rows);
    println!();
    remarks.iter().for_each(|remark| println!("- {remark}"));
}

fn print_memory(memory: &memory::Memory, engines: &[Engine], rounds: &Rounds) {
    let mut rows = memory.rows();
    for engine in engines {
        let mut row = |name: &str, of: fn(&peers::Run) -> Option<peers::Resident>| {
            let part = |part: fn(peers::Resident) -> u64| {
                let mib = |run: &peers::Run| of(run).map(|r| tables::mib(part(r) as f64));
                rounds.told(engine.id, mib)
            };
            let parts = [part(|r| r.all), part(|r| r.anonymous), part(|r| r.file)];
            if !parts[0].is_empty() {
                let mut row = vec![format!("{}, {name}", engine.name)];
                row.extend(parts.map(|part: Figure| format!("{:.1}", part.median())));
                row.extend(std::iter::repeat_n("-".to_owned(), 3));
                rows.push(row);
            }
        };
        row("ready", |run| run.resident_ready);
        row("after the batches", |run| run.resident_done);
    }
    let header = [
        "MiB",
        "resident",
        "anonymous",
        "of files",
        "weights",
        "KV pool",
        "beyond",
    ];
    tables::print("Memory", &header, &rows);
}

fn write_json(
    path: &Path,
    setup: &Setup,
    engines: &[Engine],
    accuracies: &[(Id, Accuracy)],
    measured: &targets::Measured<'_>,
) -> anyhow::Result<()> {
    let mut all = Vec::new();
    for engine in engines {
        let rates = |&batch_size: &usize| {
            let of = |rate| measured.rounds.rate(engine.id, batch_size, rate);
            serde_json::json!({
                "batch_size": batch_size,
                "prefill": of(Rate::Prefill),
                "decode": of(Rate::Decode),
                "all": of(Rate::All),
            })
        };
        let accuracy = accuracies.iter().find(|(id, _)| *id == engine.id);
        all.push(serde_json::json!({
            "engine": engine.name,
            "failure": engine.failure,
            "rates": engine.batch_sizes.iter().map(rates).collect::<Vec<_>>(),
            "accuracy": accuracy.map(|(_, accuracy)| accuracy),
        }));
    }
    let json = serde_json::json!({
        "threads": setup.threads,
        "engines": all,
        "memory": measured.memory,
        "startup_s": measured.startup,
    });
    let text = serde_json::to_string_pretty(&json)?;
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
