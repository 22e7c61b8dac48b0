//! Counts of what happened, so that one sees that everything did.

use std::fmt;

use pageloom_engine::{Engine, FinishReason, PreemptionMode, StopCause};

use super::{clients::Client, refusal::Refusal, transcript::Outcome, watch::Seen};

macro_rules! totals {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Sums over seeds. All of them are above zero in a thousand seeds.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub(crate) struct Totals {
            $($(#[$doc])* pub(crate) $name: u64,)*
        }

        impl Totals {
            pub(crate) fn add(&mut self, other: &Totals) {
                $(self.$name += other.$name;)*
            }

            /// Each name with its count.
            pub(crate) fn rows(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

totals! {
    seeds,
    requests,
    sequences,
    refused,
    refused_queue_full,
    refused_never_fits,
    steps,
    tokens_computed,
    tokens_recomputed,
    tokens_drawn,
    preempted_by_swap,
    preempted_by_recompute,
    /// Of the former, where the scheduler chose.
    swaps_by_choice,
    forks,
    copies_on_write,
    blocks_swapped_out,
    blocks_swapped_in,
    blocks_kept_on_host,
    blocks_found_on_host,
    prefix_hit_tokens,
    prompts_scored,
    beam_searches,
    ranked_samples,
    shared_prefix_blocks,
    drafts_accepted,
    drafts_rejected,
    stopped_by_token,
    stopped_by_string,
    ended_by_length,
    aborted,
    failed_steps,
    /// Failures of transfers that were owed.
    failed_again,
    failed_rows,
    sequences_failed,
}

impl Totals {
    pub(crate) fn count_refusal(&mut self, refusal: Refusal) {
        match refusal {
            Refusal::QueueFull => self.refused_queue_full += 1,
            Refusal::NeverFits => self.refused_never_fits += 1,
            _ => self.refused += 1,
        }
    }

    /// Takes in the figures of an engine that is done.
    pub(crate) fn count_engine(&mut self, engine: &Engine, seen: &Seen) {
        let stats = engine.stats();
        let blocks = engine.scheduler().block_manager().stats();
        self.seeds += 1;
        self.steps += stats.num_steps;
        self.tokens_computed += stats.num_computed_tokens;
        self.tokens_recomputed += stats.num_recomputed_tokens;
        self.tokens_drawn += stats.num_generation_tokens;
        self.preempted_by_swap += stats.num_preemptions_by_swap;
        self.preempted_by_recompute += stats.num_preemptions_by_recompute;
        if engine.config().preemption_mode == PreemptionMode::Auto {
            self.swaps_by_choice += stats.num_preemptions_by_swap;
        }
        self.shared_prefix_blocks += engine.scheduler().num_held_blocks() as u64;
        self.prefix_hit_tokens += stats.num_prefix_hits;
        self.drafts_accepted += stats.num_accepted_tokens;
        self.drafts_rejected += stats.num_draft_tokens - stats.num_accepted_tokens;
        self.copies_on_write += blocks.num_copies;
        self.blocks_swapped_out += blocks.num_swapped_out;
        self.blocks_swapped_in += blocks.num_swapped_in;
        self.blocks_kept_on_host += blocks.num_demoted;
        self.blocks_found_on_host += blocks.num_promoted;
        self.failed_steps += seen.failed.len() as u64;
        self.failed_again += seen.failed.iter().filter(|f| f.owed).count() as u64;
        self.failed_rows += seen.num_failed_rows as u64;
    }

    /// Takes in what became of a request.
    pub(crate) fn count_client(&mut self, client: &Client<'_>) {
        self.requests += 1;
        let request = &client.line.request;
        let has_ended_well = |outcome: &Outcome| {
            outcome.ended(|reason| matches!(reason, FinishReason::Stop(_) | FinishReason::Length))
        };
        if client.transcript.outcomes.values().all(has_ended_well) {
            self.beam_searches += u64::from(request.beams.is_some());
            let is_ranked = request.beams.is_none() && request.num_seqs() > request.n;
            self.ranked_samples += u64::from(is_ranked);
        }
        let transcript = &client.transcript;
        let scores = transcript.prompt_logprobs.as_ref();
        self.prompts_scored += u64::from(scores.is_some_and(|scores| scores.len() > 1));
        for (index, outcome) in &transcript.outcomes {
            self.sequences += 1;
            self.forks += u64::from(*index > 0 && outcome.tokens.len() > 1);
            *match &outcome.finish {
                Some(FinishReason::Stop(Some(StopCause::String(_)))) => &mut self.stopped_by_string,
                Some(FinishReason::Stop(_)) => &mut self.stopped_by_token,
                Some(FinishReason::Length) => &mut self.ended_by_length,
                Some(FinishReason::Abort) => &mut self.aborted,
                Some(FinishReason::Error(_)) | None => &mut self.sequences_failed,
            } += 1;
        }
    }

    /// What never happened.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        let rows = self.rows().into_iter();
        rows.filter(|row| row.1 == 0).map(|row| row.0).collect()
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.rows().into_iter();
        let words = rows.map(|(name, count)| format!("{} {count}", name.replace('_', " ")));
        write!(f, "{}", words.collect::<Vec<_>>().join(", "))
    }
}
