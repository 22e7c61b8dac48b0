//! A model of the size people serve: 7 billion weights of 4 bits, one stream. Its weights are
//! random, made for this run: neither speed nor memory depends on what they say.
//!
//! ```text
//! disk space? -> write the file -> rounds: read rate, pageloom bench (watched), read rate -> table
//! ```

mod file;
mod peak;

use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use pageloom_benches::machine;
use pageloom_model_runner::{Checkpoint, ModelConfig};
use serde::Deserialize;
use tempfile::NamedTempFile;

use self::file::LLAMA_2_7B;
use self::peak::{Peak, Watch};
use super::child::Running;
use super::roofline::Work;
use super::tables::{self, Figure, mib};

/// A run that takes longer has hung.
const LIMIT: Duration = Duration::from_secs(20 * 60);
/// Disk space to leave to others, beside the file.
const SPARE_DISK_BYTES: u64 = 1 << 30;
/// What the project promises of such a model.
const MAX_MEMORY_BYTES: u64 = 24 << 30;
const MIN_PERCENT_OF_READING: f64 = 70.0;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rounds, of which medians are told
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=100))]
    runs: u16,
    /// Threads [default: one per core]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Tokens in the prompt
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=2048))]
    prompt_len: u16,
    /// Tokens generated
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(2..=2048))]
    output_len: u16,
    /// Other flags of pageloom bench
    #[arg(
        long,
        value_name = "FLAGS",
        allow_hyphen_values = true,
        default_value = ""
    )]
    mode: String,
    /// Where the file of 3.8 GB is made, and deleted at the end [default: the system's folder for
    /// temporary files]
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// The pageloom to run [default: the one beside this program]
    #[arg(long, value_name = "PATH")]
    pageloom: Option<PathBuf>,
}

/// What `pageloom bench --json` prints, as far as it is needed.
#[derive(Debug, Deserialize)]
struct Told {
    prefill: f64,
    decode: f64,
    weight_bytes: u64,
}

/// One round.
struct Run {
    told: Told,
    peak: Option<Peak>,
    /// Bytes a second that the machine reads, in 10^9, before and after.
    read: [f64; 2],
}

/// Makes the model, runs it and deletes it.
///
/// # Errors
/// If disk space does not suffice, the file cannot be made, or Pageloom is missing or fails.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let pageloom = match &args.pageloom {
        Some(path) => path.clone(),
        None => super::beside_this_program()?,
    };
    ensure!(
        pageloom.is_file(),
        "{} is not there: cargo build --release -p pageloom, or --pageloom PATH",
        pageloom.display()
    );
    let folder = args.folder.clone().unwrap_or_else(std::env::temp_dir);
    let model = make_model(&folder)?;
    let config = Checkpoint::open(model.path())?.config().clone();
    let runs = (0..args.runs).map(|round| {
        eprintln!("round {} of {}", round + 1, args.runs);
        run_once(args, &pageloom, model.path())
    });
    let runs: Vec<Run> = runs.collect::<anyhow::Result<_>>()?;
    print(args, &config, &runs);
    model.close().context("cannot delete the model")
}

/// The file is deleted when it is dropped.
fn make_model(folder: &Path) -> anyhow::Result<NamedTempFile> {
    let place = || folder.display();
    let disk = rustix::fs::statvfs(folder)
        .with_context(|| format!("cannot ask for the free space of {}", place()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let needed = LLAMA_2_7B.data_bytes() + SPARE_DISK_BYTES;
    ensure!(
        free >= needed,
        "{} has {free} bytes free, and {needed} are needed: name another with --folder",
        place()
    );
    let mut file = tempfile::Builder::new();
    let mut file = file
        .prefix("pageloom-large-")
        .suffix(".gguf")
        .tempfile_in(folder)
        .with_context(|| format!("cannot make a file in {}", place()))?;
    let began = Instant::now();
    let mut out = BufWriter::with_capacity(1 << 20, file.as_file_mut());
    LLAMA_2_7B
        .write(0, &mut out)
        .with_context(|| format!("cannot write the model into {}", place()))?;
    drop(out);
    eprintln!("model written in {:.1} s", began.elapsed().as_secs_f64());
    Ok(file)
}

fn num_threads(args: &Args) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
    args.threads.map_or_else(cores, usize::from)
}

fn run_once(args: &Args, pageloom: &Path, model: &Path) -> anyhow::Result<Run> {
    let num_threads = num_threads(args);
    let read = || machine::measure(num_threads).read.all;
    let before = read();
    let mut command = Command::new(pageloom);
    command.arg("bench").arg("--model").arg(model);
    command.args(["--batch-sizes", "1", "--json"]);
    for (flag, value) in [
        ("--prompt-len", args.prompt_len.into()),
        ("--output-len", args.output_len.into()),
        ("--threads", num_threads),
    ] {
        command.args([flag, &value.to_string()]);
    }
    command.args(args.mode.split_whitespace());
    let running = Running::start(command)?;
    let watch = Watch::start(running.id());
    let lines = running.finish(LIMIT);
    let peak = watch.finish();
    let lines = lines?;
    let Some(line) = lines.last() else {
        bail!("pageloom bench printed nothing");
    };
    let told = serde_json::from_str(&line.text)
        .with_context(|| format!("pageloom bench printed {:?}", line.text))?;
    Ok(Run {
        told,
        peak,
        read: [before, read()],
    })
}

fn print(args: &Args, config: &ModelConfig, runs: &[Run]) {
    let streamed = Work::of(config).streamed();
    let of = |value: &dyn Fn(&Run) -> f64| -> Figure { runs.iter().map(value).collect() };
    let bytes = |run: &Run| run.told.weight_bytes as f64 * streamed;
    let rate = |run: &Run| bytes(run) * run.told.decode / 1e9;
    // The faster of the two: what else runs on the machine makes it slower only.
    let read = |run: &Run| run.read[0].max(run.read[1]);
    let percent = of(&|run| 100.0 * rate(run) / read(run));
    let row = |name: &str, figure: &Figure, decimals| vec![name.to_owned(), figure.show(decimals)];
    let mut rows = vec![
        row("prefill, tokens/s", &of(&|run| run.told.prefill), 2),
        row("decode, tokens/s", &of(&|run| run.told.decode), 2),
        row(
            "weights in memory, MiB",
            &of(&|run| mib(run.told.weight_bytes as f64)),
            1,
        ),
        row(
            "of these read for a token, MiB",
            &of(&|run| mib(bytes(run))),
            1,
        ),
        row("weights read in decode, GB/s", &of(&rate), 2),
        row("streaming read of the machine, GB/s", &of(&read), 2),
        row("percent of it", &percent, 1),
    ];
    let peaks: Vec<Peak> = runs.iter().filter_map(|run| run.peak).collect();
    type Part = fn(&Peak) -> u64;
    let memory: [(&str, Part); 3] = [
        ("most resident, MiB", |peak| peak.all),
        ("most anonymous, MiB", |peak| peak.anonymous),
        ("most of files, MiB", |peak| peak.file),
    ];
    for (name, of) in memory {
        let figure: Figure = peaks.iter().map(|peak| mib(of(peak) as f64)).collect();
        rows.push(row(name, &figure, 1));
    }
    let title = format!(
        "LLaMA 2 7B in shape, random Q4_0, one stream, {} + {} tokens, {} threads",
        args.prompt_len,
        args.output_len,
        num_threads(args)
    );
    tables::print(&title, &["what", "measured"], &rows);
    println!();
    let verdict = |reached: bool| if reached { "reached" } else { "NOT reached" };
    let fast = percent.median() >= MIN_PERCENT_OF_READING;
    println!(
        "- {MIN_PERCENT_OF_READING:.0} % of the streaming read rate: {}",
        verdict(fast)
    );
    match peaks.iter().map(|peak| peak.all).max() {
        Some(most) => println!(
            "- within {} GiB: {}",
            MAX_MEMORY_BYTES >> 30,
            verdict(most <= MAX_MEMORY_BYTES)
        ),
        None => println!("- memory: not measured, there is no /proc"),
    }
}
