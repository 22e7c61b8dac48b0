//! Continuous batching over a paged KV cache, as a pure state machine.
//!
//! The scheduler decides what each step of an LLM serving engine computes. There are no prefill
//! and decode phases: a sequence has tokens, of which some are computed, and a step brings the
//! second number closer to the first within a token budget. Chunked prefill, prefix hits and
//! recomputation after a preemption are all that same motion. It has no clock, no I/O, no
//! threads and no unsafe code; the same calls give the same plans.
//!
//! ```text
//!            add                    admitted                 ended
//!  (caller) ─────> waiting queue ──────────────> running ──────────────>
//!                   ^  by arrival                   │
//!                   └────── preempted: all blocks ──┘
//!                           released, tokens kept
//!
//!  loop:  plan = schedule()      which sequences compute which positions; block copies
//!         (the executor does the copies, computes, draws tokens)
//!         update(step, results)  tokens appended, full blocks published, ends reported
//! ```
//!
//! # Who is served, in this order
//!
//! 1. Running sequences that lack one token (decodes), each. `max_num_batched_tokens` is at least
//!    `max_num_seqs`, so none ever waits for another's prompt. If the pool is empty, the last
//!    arrived running sequence gives up all its blocks and waits again.
//! 2. Running sequences that lack more (prompts under way), in order of arrival, with what is
//!    left of the budget. Their blocks were all reserved at admission.
//! 3. Waiting sequences, strictly in order of arrival: a head that does not fit is overtaken by
//!    nobody. It fits when the pool has room for all its tokens and the watermark besides. Not
//!    in a step that preempted.
//!
//! The queue is ordered by arrival, whatever the order of insertion. So a preempted sequence is
//! before everything that arrived after it, and as long as it waits nothing newer is admitted.
//! A sequence that [`follows`](NewSequence::follows) another is not in the queue until that
//! one's prompt is computed; then it takes its place by arrival.
//!
//! # Some request always progresses
//!
//! Let anything be alive, and look at the sequence that arrived first among those running, if any
//! runs. If it is a decode, it is planned: were there no block for it, all others would be
//! preempted until there is, since the door ([`AdmissionError::NeverFits`]) lets nothing in that
//! could not be finished alone in the pool. If it is a prompt under way, the decodes left at least
//! one token of the budget, since they are fewer than `max_num_seqs`, and it is first to take it.
//! If nothing runs, every block is free or cached; the head of the queue then ignores the
//! watermark, and fits. The queue is not empty then: a follower's leader is alive and has not
//! computed its prompt, so it waits or follows another, and the first of them waits.
//!
//! Nor does anything wait for ever: what arrived first is never preempted for another, every step
//! brings it closer to its end, and then there is another first.
//!
//! # Ends
//!
//! [`finish`](Scheduler::finish) may be called at any moment. If the sequence is part of the step
//! in flight, its blocks stay its own until [`update`](Scheduler::update), because the executor
//! may still write to them.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod blocks;
mod config;
mod cost;
mod error;
mod group;
mod plan;
mod queue;
mod report;
mod schedule;
mod scheduler;
mod sequence;
mod stats;

pub use config::{Config, SchedulingPolicy};
pub use cost::{PreemptionMode, StepTimes};
pub use error::{AdmissionError, ConfigError};
pub use plan::{EndReason, PlannedSeq, SeqEvent, SeqResult, StepPlan};
pub use scheduler::Scheduler;
pub use sequence::{NewSequence, SeqId};
pub use stats::SchedulerStats;

/// The block manager, whose types are part of this crate's interface.
pub use pageloom_block_manager as block_manager;
pub use pageloom_block_manager::{BlockId, BlockManager, BlockOps, Namespace, StepId, TokenId};

/// The README's example is compiled and run with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
