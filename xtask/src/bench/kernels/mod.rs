//! `cargo xtask bench kernels`: the CUDA kernels against what the GPU's memory and arithmetic give.
//!
//! Every time is that of a captured graph of launches, so launching is not in it, over so many
//! copies of the data that they do not fit in the L2 cache. Rates of memory are in percent of a
//! large copy on the same device in the same run, bytes read and written counted.

pub(crate) mod attention;
mod memory;
mod timing;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use pageloom_paged_attn_kernels::cuda::Device;
use serde::Serialize;

use timing::Bench;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Writes every row as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fewer cases, smaller ones
    #[arg(long)]
    quick: bool,
}

/// One measured case.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    /// What the table is about.
    table: &'static str,
    /// The case, for people.
    case: String,
    /// Milliseconds of one call, median of the runs.
    ms: f64,
    /// Fastest and slowest run.
    range_ms: (f64, f64),
    /// What `ms` is compared with.
    measure: Measure,
}

/// What a time amounts to.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum Measure {
    /// Of the copy's bytes a second, in percent.
    PercentOfCopy(f64),
    /// 10^12 operations a second.
    Tflops(f64),
    /// The time over that of another case.
    Ratio(f64),
    /// 10^9 bytes a second, one way.
    GbPerS(f64),
}

#[derive(Serialize)]
struct Report<'a> {
    device: &'a str,
    capability: (u32, u32),
    copy_gb_per_s: f64,
    rows: &'a [Row],
}

/// Runs all of it.
///
/// # Errors
/// If there is no GPU, or a kernel fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    let device =
        Device::open(0).context("this times kernels on a GPU; `bench kernel` is for the CPU")?;
    let mut bench = Bench::new(&device, args.quick)?;
    attention::decode(&mut bench)?;
    attention::paged_against_contiguous(&mut bench)?;
    attention::block_sizes(&mut bench)?;
    attention::formats(&mut bench)?;
    attention::fixed_splits(&mut bench)?;
    attention::prefill(&mut bench)?;
    memory::run(&mut bench)?;
    let properties = device.properties();
    println!(
        "\n{}, compute capability {}.{}: copy {:.0} GB/s",
        properties.name, properties.capability.0, properties.capability.1, bench.copy_rate
    );
    print(&bench.rows);
    if let Some(path) = &args.json {
        let report = Report {
            device: &properties.name,
            capability: properties.capability,
            copy_gb_per_s: bench.copy_rate,
            rows: &bench.rows,
        };
        let json = serde_json::to_string_pretty(&report)?;
        fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn print(rows: &[Row]) {
    let mut table = "";
    for row in rows {
        if row.table != table {
            table = row.table;
            println!("\n{table}\n| case | ms | (range) | |\n|---|---:|---:|---:|");
        }
        let measure = match row.measure {
            Measure::PercentOfCopy(percent) => format!("{percent:.1} % of copy"),
            Measure::Tflops(tflops) => format!("{tflops:.0} TFLOP/s"),
            Measure::Ratio(ratio) => format!("{ratio:.3} x"),
            Measure::GbPerS(rate) => format!("{rate:.1} GB/s"),
        };
        println!(
            "| {} | {:.4} | {:.4}..{:.4} | {measure} |",
            row.case, row.ms, row.range_ms.0, row.range_ms.1
        );
    }
}
