//! `--step-log`: a line of JSON for each step of the engine.

use std::fs::File;
use std::io::{BufWriter, Write};

use pageloom_engine::{EngineStats, Histogram};
use serde::Serialize;

/// Writes what changed from step to step.
#[derive(Debug)]
pub struct StepLog {
    out: BufWriter<File>,
    before: EngineStats,
    /// A full disk is told once and ends the log, not the server.
    failed: bool,
}

/// A line of the log: what the step did, and from `running_seqs` to `logical_blocks` how it left the
/// engine.
#[derive(Debug, Serialize)]
struct Line {
    step: u64,
    failed: bool,
    time_s: f64,
    /// The part of it in which blocks were moved or copied.
    transfer_s: f64,
    computed_tokens: u64,
    recomputed_tokens: u64,
    generated_tokens: u64,
    prefix_hit_tokens: u64,
    swapped_out_blocks: u64,
    swapped_in_blocks: u64,
    copied_blocks: u64,
    preempted_by_swap: u64,
    preempted_by_recompute: u64,
    running_seqs: usize,
    waiting_seqs: usize,
    free_blocks: usize,
    cached_blocks: usize,
    /// In use, and the same with each block counted for every sequence that shares it.
    physical_blocks: usize,
    logical_blocks: usize,
    /// Of the sequences that began, drew their first token, and ended: sums of the times they waited,
    /// computed their prompt, and generated.
    queue_s: f64,
    prefill_s: f64,
    decode_s: f64,
}

impl StepLog {
    /// Begins a log; `stats` are the engine's before its first step.
    pub fn new(file: File, stats: EngineStats) -> Self {
        StepLog {
            out: BufWriter::new(file),
            before: stats,
            failed: false,
        }
    }

    /// Takes in the figures after a step.
    pub fn note(&mut self, stats: &EngineStats) {
        if self.failed {
            return;
        }
        let line = line(&self.before, stats);
        let written = serde_json::to_writer(&mut self.out, &line)
            .map_err(std::io::Error::from)
            .and_then(|()| self.out.write_all(b"\n"))
            // Whoever follows the file sees each step as it ends.
            .and_then(|()| self.out.flush());
        if let Err(error) = written {
            eprintln!("warning: --step-log ends here: {error}");
            self.failed = true;
        }
        self.before.clone_from(stats);
    }
}

fn line(before: &EngineStats, after: &EngineStats) -> Line {
    let since = |count: fn(&EngineStats) -> u64| count(after) - count(before);
    let sum = |times: fn(&EngineStats) -> &Histogram| times(after).sum() - times(before).sum();
    Line {
        step: after.num_steps,
        failed: since(|s| s.num_failed_steps) > 0,
        time_s: (after.step_time - before.step_time).as_secs_f64(),
        transfer_s: (after.transfer_time - before.transfer_time).as_secs_f64(),
        computed_tokens: since(|s| s.num_computed_tokens),
        recomputed_tokens: since(|s| s.num_recomputed_tokens),
        generated_tokens: since(|s| s.num_generation_tokens),
        prefix_hit_tokens: since(|s| s.num_prefix_hits),
        swapped_out_blocks: since(|s| s.num_swapped_out_blocks),
        swapped_in_blocks: since(|s| s.num_swapped_in_blocks),
        copied_blocks: since(|s| s.num_copied_blocks),
        preempted_by_swap: since(|s| s.num_preemptions_by_swap),
        preempted_by_recompute: since(|s| s.num_preemptions_by_recompute),
        running_seqs: after.num_running,
        waiting_seqs: after.num_waiting,
        free_blocks: after.num_free_blocks,
        cached_blocks: after.num_cached_blocks,
        physical_blocks: after.num_referenced_blocks,
        logical_blocks: after.num_logical_blocks,
        queue_s: sum(|s| &s.queue_time),
        prefill_s: sum(|s| &s.prefill_time),
        decode_s: sum(|s| &s.decode_time),
    }
}
