//! What the CPU back end is to reach, and whether it did in this run.

use super::Setup;
use super::accuracy::Accuracy;
use super::memory::Memory;
use super::peers::Id;
use super::tables::{self, Figure, mib};
use super::throughput::{Rate, Rounds};

/// A rate of ours beside a peer's.
struct Against {
    name: &'static str,
    batch_size: usize,
    rate: Rate,
    peer: Id,
    factor: f64,
}

const AGAINST: [Against; 4] = [
    Against {
        name: "all tokens/s, 64 at once, of OpenVINO Q8_0",
        batch_size: 64,
        rate: Rate::All,
        peer: Id::OpenVinoQ8,
        factor: 1.5,
    },
    Against {
        name: "decode tokens/s, 32 at once, of OpenVINO Q4_0",
        batch_size: 32,
        rate: Rate::Decode,
        peer: Id::OpenVinoQ4,
        factor: 1.5,
    },
    Against {
        name: "prefill tokens/s, 64 at once, of OpenVINO Q8_0",
        batch_size: 64,
        rate: Rate::Prefill,
        peer: Id::OpenVinoQ8,
        factor: 1.3,
    },
    Against {
        name: "decode tokens/s, one stream, of llama.cpp Q4_0",
        batch_size: 1,
        rate: Rate::Decode,
        peer: Id::LlamaCppQ4,
        factor: 1.5,
    },
];

const SCALING: f64 = 1.85;
const BEYOND_MIB: f64 = 100.0;
const READY_S: f64 = 1.0;
const MEAN_DIFFERENCE: f64 = 0.025;
const BEST_EQUAL: f64 = 0.985;
const MEAN_DIVERGENCE: f64 = 1e-3;

/// What the sections measured; what a run left out is not there.
pub(super) struct Measured<'a> {
    pub(super) rounds: &'a Rounds,
    pub(super) memory: Option<&'a Memory>,
    pub(super) startup: Option<&'a Figure>,
    /// Of the default mode.
    pub(super) accuracy: Option<&'a Accuracy>,
}

pub(super) fn print(setup: &Setup, measured: &Measured<'_>) {
    let mut rows = Vec::new();
    for target in &AGAINST {
        let rate = |id| measured.rounds.rate(id, target.batch_size, target.rate);
        let (ours, theirs) = (rate(Id::Pageloom(0)), rate(target.peer));
        let ratio = ours.over(&theirs);
        let reached = (!ratio.is_empty()).then(|| ratio.median() >= target.factor);
        rows.push(row(
            target.name,
            ours.show(0),
            theirs.show(0),
            format!("{} of {}x", ratio.show(2), target.factor),
            reached,
        ));
    }
    rows.push(scaling(setup, measured.rounds));
    rows.extend(memory_and_time(measured));
    rows.extend(accuracy(measured.accuracy));
    tables::print(
        "Targets: median (lowest..highest of the rounds)",
        &["target", "ours", "peer", "ratio of asked", ""],
        &rows,
    );
}

fn row(
    name: &str,
    ours: String,
    peer: String,
    asked: String,
    reached: Option<bool>,
) -> Vec<String> {
    let verdict = match reached {
        Some(true) => "reached",
        Some(false) => "not reached",
        None => "not measured",
    };
    vec![name.to_owned(), ours, peer, asked, verdict.to_owned()]
}

fn dash() -> String {
    "-".to_owned()
}

fn scaling(setup: &Setup, rounds: &Rounds) -> Vec<String> {
    let rate = |id| rounds.rate(id, setup.largest(), Rate::All);
    let (all, one) = (rate(Id::Pageloom(0)), rate(Id::PageloomOneThread));
    let ratio = all.over(&one);
    let reached = (setup.threads == 2 && !ratio.is_empty()).then(|| ratio.median() >= SCALING);
    row(
        &format!(
            "1 to {} threads, {} at once",
            setup.threads,
            setup.largest()
        ),
        all.show(0),
        format!("1 thread: {}", one.show(0)),
        format!("{} of {SCALING}x", ratio.show(2)),
        reached,
    )
}

fn memory_and_time(measured: &Measured<'_>) -> Vec<Vec<String>> {
    let beyond = measured.memory.map(|memory| mib(memory.beyond()[1]));
    let startup = measured.startup.filter(|startup| !startup.is_empty());
    let peer = |id| {
        measured
            .rounds
            .told(id, |run| run.ready.map(|t| t.as_secs_f64()))
    };
    vec![
        row(
            "resident MiB beyond weights and KV pool",
            beyond.map_or_else(dash, |beyond| format!("{beyond:.0}")),
            dash(),
            format!("under {BEYOND_MIB}"),
            beyond.map(|beyond| beyond < BEYOND_MIB),
        ),
        row(
            "seconds from launch to ready, model cached",
            startup.map_or_else(dash, |startup| startup.show(2)),
            format!("OpenVINO Q8_0: {}", peer(Id::OpenVinoQ8).show(1)),
            format!("under {READY_S}"),
            startup.map(|startup| startup.median() < READY_S),
        ),
    ]
}

fn accuracy(of: Option<&Accuracy>) -> Vec<Vec<String>> {
    let cells = of.map_or_else(|| [(); 4].map(|()| dash()), Accuracy::cells);
    let [difference, best, divergence, sentences] = cells;
    vec![
        row(
            "mean difference of log-probability",
            difference,
            dash(),
            format!("at most {MEAN_DIFFERENCE}"),
            of.map(|a| a.mean_difference() <= MEAN_DIFFERENCE),
        ),
        row(
            "best token equal",
            best,
            dash(),
            format!("at least {} %", 100.0 * BEST_EQUAL),
            of.and_then(|a| Some(a.best_equal()? >= BEST_EQUAL)),
        ),
        row(
            "mean of sum p (log p - log q), five tokens",
            divergence,
            dash(),
            format!("at most {MEAN_DIVERGENCE:.0e}"),
            of.and_then(|a| Some(a.mean_divergence()? <= MEAN_DIVERGENCE)),
        ),
        row(
            "first sentence of chats the same",
            sentences,
            dash(),
            "all".to_owned(),
            of.map(Accuracy::all_sentences_same),
        ),
    ]
}
