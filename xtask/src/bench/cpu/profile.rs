//! Where the time of each phase goes, as `pageloom bench --profile` tells it.

use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;

use super::Setup;
use super::child::Running;
use super::tables;

const LIMIT: Duration = Duration::from_secs(600);

#[derive(Deserialize)]
struct Line {
    batch_size: usize,
    profile: Phases,
}

#[derive(Deserialize)]
struct Phases {
    prefill: Shares,
    decode: Shares,
}

/// Milliseconds by operation over all steps of a phase.
#[derive(Deserialize)]
struct Shares {
    num_steps: u64,
    total_ms: f64,
    busy_ms: f64,
    idle_ms: f64,
    ms: Vec<(String, f64)>,
}

/// Runs one stream and the largest batch, and prints a table of decode at both and of prefill.
///
/// # Errors
/// If it fails, or this Pageloom has no `--profile`.
pub(super) fn run(setup: &Setup) -> anyhow::Result<()> {
    let mut command = Command::new(&setup.pageloom);
    let sizes = format!("1,{}", setup.largest());
    command.args(["bench", "--json", "--profile", "--batch-sizes", &sizes]);
    command.args(["--threads", &setup.threads.to_string()]);
    command.arg("--model").arg(&setup.model);
    let lines = Running::start(command)?.finish(LIMIT)?;
    let parsed = lines.iter().map(|line| {
        let text = &line.text;
        serde_json::from_str::<Line>(text).with_context(|| format!("not a profile: {text}"))
    });
    let parsed = parsed.collect::<anyhow::Result<Vec<Line>>>()?;
    let (one, many) = (parsed.first(), parsed.last());
    let (one, many) = one.zip(many).context("it printed nothing")?;
    let size = many.batch_size;
    let phases = [
        ("one stream, decode".to_owned(), &one.profile.decode),
        (format!("{size} at once, decode"), &many.profile.decode),
        (format!("{size} at once, prefill"), &many.profile.prefill),
    ];
    let mut header = vec!["ms a step, share".to_owned()];
    header.extend(phases.iter().map(|(name, _)| name.clone()));
    let cell = |shares: &Shares, ms: f64| {
        let step = ms / shares.num_steps.max(1) as f64;
        format!("{step:.2}, {:.1} %", 100.0 * ms / shares.total_ms)
    };
    let mut rows = Vec::new();
    for (index, (name, _)) in one.profile.decode.ms.iter().enumerate() {
        let of = |(_, shares): &(String, &Shares)| {
            let ms = shares.ms.get(index).map_or(f64::NAN, |(_, ms)| *ms);
            cell(shares, ms)
        };
        rows.push([vec![name.clone()], phases.iter().map(of).collect()].concat());
    }
    let total = phases
        .iter()
        .map(|(_, shares)| cell(shares, shares.total_ms));
    rows.push([vec!["all".to_owned()], total.collect()].concat());
    let idle = phases.iter().map(|(_, shares)| {
        let threads = shares.busy_ms + shares.idle_ms;
        format!("{:.1} %", 100.0 * shares.idle_ms / threads)
    });
    rows.push(
        [
            vec!["idle, of all threads' time".to_owned()],
            idle.collect(),
        ]
        .concat(),
    );
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    tables::print("Where the time goes", &header, &rows);
    Ok(())
}
