//! Taking in what a step computed.

use pageloom_block_manager::StepId;

use crate::{EndReason, PlannedSeq, Scheduler, SeqEvent, SeqResult};

impl Scheduler {
    /// Reports the step in flight: `results` has one entry for each of its sequences, in order.
    /// What happened replaces the contents of `events`.
    ///
    /// A sequence that [`finish`](Self::finish) ended meanwhile has no event.
    ///
    /// # Panics
    /// If `step` is not in flight, if `results` has another length than the plan, or if a
    /// result is a token where none was to be drawn or the other way round: the caller's bugs.
    pub fn update(&mut self, step: StepId, results: &[SeqResult], events: &mut Vec<SeqEvent>) {
        assert_eq!(self.in_flight, Some(step), "the step is not in flight");
        assert_eq!(
            results.len(),
            self.plan.seqs.len(),
            "one result for each planned sequence"
        );
        self.in_flight = None;
        self.blocks.complete(step);
        events.clear();
        let before = self.stats;
        let seqs = core::mem::take(&mut self.plan.seqs);
        for (planned, &result) in seqs.iter().zip(results) {
            self.report(planned, result, events);
        }
        self.plan.seqs = seqs;
        self.sweep();
        self.headroom.observe(
            self.stats.num_computed_tokens - before.num_computed_tokens,
            self.stats.num_recomputed_tokens - before.num_recomputed_tokens,
            self.blocks.config().num_blocks * self.block_size(),
        );
    }

    /// Takes in what one sequence computed.
    fn report(&mut self, planned: &PlannedSeq, result: SeqResult, events: &mut Vec<SeqEvent>) {
        let slot = planned.id.index;
        let sequence = &mut self.sequences[slot as usize];
        sequence.in_flight = false;
        if sequence.ending {
            self.end(slot);
            return;
        }
        if result == SeqResult::Failed {
            self.end(slot);
            events.push(SeqEvent::Ended {
                id: planned.id,
                reason: EndReason::Failed,
            });
            return;
        }
        self.take_computed(planned, result.num_accepted(), events);
        let sequence = &mut self.sequences[slot as usize];
        match (planned.sample, result) {
            (true, SeqResult::Token(token) | SeqResult::Tokens { token, .. }) => {
                sequence.tokens.push(token);
                let id = planned.id;
                let num_new = result.num_accepted() + 1;
                let new = sequence.tokens[sequence.tokens.len() - num_new..].iter();
                events.extend(new.map(|&token| SeqEvent::Token { id, token }));
            }
            (false, SeqResult::Computed) => {}
            (sample, other) => panic!(
                "sequence {} was planned with sample {sample} and reported {other:?}",
                planned.id
            ),
        }
        // With max_tokens 0 the sequence is complete once its prompt is computed.
        let complete = sequence.tokens.len() == sequence.max_len
            && (planned.sample || sequence.num_computed == sequence.max_len);
        if complete {
            self.end(slot);
            events.push(SeqEvent::Ended {
                id: planned.id,
                reason: EndReason::Length,
            });
        } else if planned.num_drafts > 0 {
            self.give_back_drafts(slot);
        }
    }

    /// Takes in that the positions of a sequence were computed, but for those of drafts that were
    /// not accepted.
    fn take_computed(
        &mut self,
        planned: &PlannedSeq,
        num_accepted: usize,
        events: &mut Vec<SeqEvent>,
    ) {
        let end = self.accept(planned, num_accepted);
        let block_size = self.block_size();
        let sequence = &mut self.sequences[planned.id.index()];
        // Only full blocks are worth telling: a partial one is shared with nobody.
        let whole = end - end % block_size;
        if whole > sequence.num_committed {
            let table = sequence.table.expect("a planned sequence has a table");
            let computed = &sequence.tokens[sequence.num_committed..whole];
            self.blocks.commit(table, computed);
            sequence.num_committed = whole;
        }
        self.stats.num_computed_tokens += planned.positions.len() as u64;
        let again = sequence.high_water.min(end);
        self.stats.num_recomputed_tokens += again.saturating_sub(planned.positions.start) as u64;
        sequence.num_computed = end;
        sequence.high_water = sequence.high_water.max(sequence.num_computed);
        sequence.num_scored = sequence.num_scored.max(planned.scores.end);
        if !sequence.prompt_reported && sequence.num_computed >= sequence.num_prompt {
            sequence.prompt_reported = true;
            events.push(SeqEvent::PromptComputed {
                id: planned.id,
                num_cached_tokens: sequence.num_cached,
            });
        }
    }

    /// Ends a running sequence while a step is reported; `sweep` frees its slot.
    fn end(&mut self, slot: u32) {
        self.close(slot);
        self.sequences[slot as usize].gone = true;
        self.ended.push(slot);
    }

    /// Frees the slots of what ended in this report, all at once.
    fn sweep(&mut self) {
        if self.ended.is_empty() {
            return;
        }
        let sequences = &self.sequences;
        self.running.retain(|&slot| !sequences[slot as usize].gone);
        for slot in self.ended.drain(..) {
            self.sequences.remove(slot as usize);
        }
    }
}
