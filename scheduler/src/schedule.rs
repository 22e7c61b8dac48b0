//! Planning a step: decodes, then prefills that go on, then admissions.

use pageloom_block_manager::StepId;

use crate::{PlannedSeq, Scheduler, StepPlan, sequence::Place};

/// Tokens of the step not yet given away.
type Budget = usize;

impl Scheduler {
    /// Plans the next step; `None` if there is nothing to compute.
    ///
    /// The plan stays readable as [`plan`](Self::plan) until [`update`](Self::update) reports it.
    ///
    /// # Panics
    /// If a step is in flight.
    pub fn schedule(&mut self) -> Option<&StepPlan> {
        assert!(
            self.in_flight.is_none(),
            "step {} is still in flight",
            self.next_step - 1
        );
        self.plan.seqs.clear();
        self.plan.num_tokens = 0;
        let mut budget = self.config.max_num_batched_tokens;
        let preempted_before = self.stats.num_preemptions;
        let num_prefills = self.plan_decodes(&mut budget);
        if num_prefills > 0 {
            self.plan_prefills(&mut budget);
        }
        // Whoever was preempted a moment ago must not be let in again by the same step.
        if self.stats.num_preemptions == preempted_before {
            self.admit(&mut budget);
        }
        if self.plan.seqs.is_empty() {
            return None;
        }
        let step = StepId(self.next_step);
        self.next_step += 1;
        self.plan.step = step;
        self.blocks.seal_into(step, &mut self.plan.ops);
        self.in_flight = Some(step);
        Some(&self.plan)
    }

    /// Plans every running sequence that lacks one token, preempting from the other end when
    /// the pool is empty. Returns how many running sequences lack more.
    fn plan_decodes(&mut self, budget: &mut Budget) -> usize {
        let mut num_prefills = 0;
        let mut at = 0;
        while at < self.running.len() {
            let slot = self.running[at];
            if self.sequences[slot as usize].num_remaining() > 1 {
                num_prefills += 1;
                at += 1;
            } else if self.reserve_last(slot) {
                self.plan_chunk(slot, budget);
                at += 1;
            } else {
                // The last arrived, which may be this very sequence: never a planned one, since
                // those are all before it.
                self.preempt_last();
            }
        }
        num_prefills
    }

    /// Gives what is left of the budget to prompts under way, first come first served. Their
    /// slots were all reserved when they were admitted.
    fn plan_prefills(&mut self, budget: &mut Budget) {
        for at in 0..self.running.len() {
            if *budget == 0 {
                break;
            }
            let slot = self.running[at];
            if self.sequences[slot as usize].num_remaining() > 1 {
                self.plan_chunk(slot, budget);
            }
        }
    }

    /// Lets waiting sequences in, strictly in order: the head waits until it fits, and nobody
    /// overtakes it.
    fn admit(&mut self, budget: &mut Budget) {
        while *budget > 0 && self.running.len() < self.config.max_num_seqs {
            let Some(slot) = self.waiting.front() else {
                break;
            };
            if !self.open_table(slot) {
                break;
            }
            self.waiting.pop_front();
            self.unqueue(slot);
            let place = self.running_place(self.sequences[slot as usize].arrival);
            self.running.insert(place, slot);
            self.plan_chunk(slot, budget);
        }
    }

    /// Gives a waiting sequence a table with room for all its tokens, cached blocks first.
    /// Changes nothing and returns false if they do not fit.
    fn open_table(&mut self, slot: u32) -> bool {
        let sequence = &self.sequences[slot as usize];
        let available = self.blocks.num_available_blocks();
        let alone = self.running.is_empty();
        let blocked = self
            .blocked
            .is_some_and(|(id, at)| id == sequence.id && available <= at);
        if blocked && !alone {
            return false;
        }
        // Scores come from computing: a position found in the cache has no logits.
        let known: &[_] = if sequence.needs_scores() {
            &[]
        } else {
            &sequence.tokens
        };
        let num_known = known.len();
        let num_tokens = sequence.tokens.len();
        let num_slots = num_tokens.next_multiple_of(self.block_size());
        // Alone, it may have what would be left for others.
        let keep = if alone { 0 } else { self.watermark_blocks() };
        let admitted = self
            .blocks
            .admit(known, num_slots, sequence.namespace, keep);
        let Ok((table, num_cached)) = admitted else {
            self.blocked = Some((sequence.id, available));
            return false;
        };
        self.blocked = None;
        let sequence = &mut self.sequences[slot as usize];
        sequence.table = Some(table);
        sequence.place = Place::Running;
        sequence.num_computed = num_cached;
        sequence.num_committed = num_cached;
        sequence.num_slots = num_slots;
        if sequence.queued {
            sequence.num_cached = num_cached;
            self.stats.num_prefix_queries += num_known as u64;
            self.stats.num_prefix_hits += num_cached as u64;
            // Its tokens never move again while it runs.
            let to_come = sequence.max_len - num_tokens;
            sequence.tokens.reserve_exact(to_come);
        }
        true
    }

    fn watermark_blocks(&self) -> usize {
        (self.config.watermark * self.blocks.config().num_blocks as f64).ceil() as usize
    }

    /// Makes sure that a running sequence's last token has a slot. The manager is asked for a
    /// whole block at a time, which costs no more than a slot of it, so most steps ask nothing.
    fn reserve_last(&mut self, slot: u32) -> bool {
        let sequence = &mut self.sequences[slot as usize];
        if sequence.tokens.len() <= sequence.num_slots {
            return true;
        }
        let num_slots = sequence.num_slots + self.blocks.config().block_size;
        let table = sequence.table.expect("a running sequence has a table");
        let missing = num_slots - sequence.num_committed;
        let reserved = self.blocks.reserve(table, missing).is_ok();
        if reserved {
            sequence.num_slots = num_slots;
        }
        reserved
    }

    /// Takes all blocks from the last arrived running sequence, which waits again at its place
    /// in the queue: before everything that arrived later, with its output as part of its
    /// prompt. Its full blocks stay findable until others need them.
    fn preempt_last(&mut self) {
        let slot = self.running.pop().expect("a sequence is running");
        let sequence = &mut self.sequences[slot as usize];
        let table = sequence.table.take();
        self.blocks
            .release(table.expect("a running sequence has a table"));
        sequence.num_computed = 0;
        sequence.place = Place::Waiting;
        self.waiting.insert(sequence.arrival, slot);
        self.stats.num_preemptions += 1;
    }

    /// Plans as many of the sequence's remaining tokens as the budget has.
    fn plan_chunk(&mut self, slot: u32, budget: &mut Budget) {
        let threshold = match self.config.long_prefill_token_threshold {
            0 => usize::MAX,
            tokens => tokens,
        };
        let sequence = &mut self.sequences[slot as usize];
        let remaining = sequence.num_remaining();
        let chunk = remaining.min(threshold).min(*budget);
        debug_assert!(chunk > 0, "a planned sequence computes something");
        let (start, end) = (sequence.num_computed, sequence.num_computed + chunk);
        let scores_end = end.min(sequence.num_scores());
        let scores_start = start.max(sequence.num_scored).min(scores_end);
        sequence.in_flight = true;
        *budget -= chunk;
        self.plan.num_tokens += chunk;
        self.plan.seqs.push(PlannedSeq {
            id: sequence.id,
            positions: start..end,
            scores: scores_start..scores_end,
            sample: chunk == remaining && sequence.tokens.len() < sequence.max_len,
        });
    }
}
