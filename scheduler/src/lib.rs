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
//!                   ^  in order                    │ ^
//!                   ├── preempted: blocks released ┤ └─ fork: shares all blocks
//!                   └── preempted: copied to the   ┘
//!                       host, and back when admitted
//!
//!  loop:  plan = schedule()      which sequences compute which positions; swaps and copies
//!         (the executor does those, computes, draws tokens)
//!         update(step, results)  tokens appended, full blocks published, ends reported
//!         fork, finish           samples of one prompt, survivors and losers of a beam search
//! ```
//!
//! # Groups
//!
//! A sequence and its forks are a group: they share blocks, so they are let in, preempted and
//! resumed together. A group keeps as many seats as it may have sequences. In *lockstep*, as a
//! beam search wants it, all of them draw in the same step or none does.
//!
//! # Who is served, in this order
//!
//! 1. Running sequences that lack one token (decodes), each. `max_num_batched_tokens` is at least
//!    `max_num_seqs`, so none ever waits for another's prompt. If the pool is empty, the running
//!    group that is last in the order gives up all its blocks and waits again.
//! 2. Running sequences that lack more (prompts under way), in order, with what is left of the
//!    budget. Their blocks were all reserved at admission.
//! 3. Waiting groups, strictly in order: a head that does not fit is overtaken by nobody. It fits
//!    when its seats are free and the pool has room for all its tokens, and besides for the
//!    watermark and a headroom that grows while more than 4 % of what is computed is recomputed.
//!    Not in a step that preempted.
//! 4. Drafts, with what is left of the budget and of the blocks: guesses at the next tokens of
//!    sequences that lack one, see [`propose`](Scheduler::propose). They are computed behind that
//!    one; those that turn out to be what is drawn are kept, and the blocks of the others given
//!    back by the same step's report.
//!
//! The order is that of arrival ([`SchedulingPolicy::Fcfs`]), whatever the order of insertion. So a
//! preempted group is before everything that arrived after it, and as long as it waits nothing
//! newer is admitted. With [`SchedulingPolicy::Priority`] a class of urgency moves a request's
//! place in the order by a fixed time; and before anything else is planned, the head of the queue
//! may preempt less urgent groups behind it.
//!
//! # What becomes of a preempted group
//!
//! [`PreemptionMode::Swap`]: its block tables move to the host, what is shared stays shared, and
//! come back when the group is admitted again. [`PreemptionMode::Recompute`]: its blocks are
//! released and its tokens kept. When it is admitted again its first sequence is computed like a
//! prompt, as far as the prefix cache does not have it; each other then shares what it has in
//! common with one before it, and computes the rest. [`PreemptionMode::Auto`] takes what was
//! quicker so far.
//!
//! # Some request always progresses
//!
//! Let anything be alive, and look at the first group of those running, if any runs. If it lacks
//! blocks, all others are preempted until it has them, since the door
//! ([`AdmissionError::NeverFits`]) lets nothing in that could not be finished alone in the pool,
//! all its sequences at their longest. If it has decodes they are planned; if it has a prompt under
//! way, the decodes left at least one token of the budget, since they are fewer than
//! `max_num_seqs`, and it is first to take it. If nothing runs, every block is free or cached; the
//! head of the queue then ignores the watermark, and fits.
//!
//! Nor does anything wait for ever: what is first is never preempted for another, every step brings
//! it closer to its end, and then there is another first. With priorities, nothing that arrives
//! later than the ageing time times the difference in class comes before it.
//!
//! # Ends
//!
//! [`finish`](Scheduler::finish) may be called at any moment. If the sequence is part of the step
//! in flight, its blocks stay its own until [`update`](Scheduler::update), because the executor
//! may still write to them.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod admission;
mod blocks;
mod config;
mod cost;
mod door;
mod drafts;
mod error;
mod group;
mod headroom;
mod holding;
mod plan;
mod queue;
mod report;
mod schedule;
mod scheduler;
mod sequence;
mod stats;

pub use admission::{Admission, Applicant};
pub use config::{Config, SchedulingPolicy};
pub use cost::{PreemptionMode, StepTimes};
pub use door::blocks_at_longest;
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
