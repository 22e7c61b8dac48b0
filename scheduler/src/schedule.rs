//! Planning a step: decodes, then prefills that go on, then admissions, then drafts.

use core::ops::Range;

use pageloom_block_manager::StepId;

use crate::{
    Applicant, PlannedSeq, Scheduler, SchedulingPolicy, StepPlan,
    group::{Order, Place},
};

/// Tokens of the step not yet given away.
type Budget = usize;

impl Scheduler {
    /// Plans the next step; `None` if there is nothing to compute.
    ///
    /// The plan stays readable as [`plan`](Self::plan) until [`update`](Self::update) reports it.
    ///
    /// # Panics
    /// If a step is in flight, or if a group has more sequences than seats.
    pub fn schedule(&mut self) -> Option<&StepPlan> {
        assert!(
            self.in_flight.is_none(),
            "step {} is still in flight",
            self.next_step - 1
        );
        assert!(
            self.running.len() <= self.num_seats,
            "{} sequences run on {} seats: losers of a beam search did not end",
            self.running.len(),
            self.num_seats
        );
        self.plan.seqs.clear();
        self.plan.num_tokens = 0;
        let mut budget = self.config.max_num_batched_tokens;
        if let Some(admission) = &mut self.admission {
            admission.begin_step(self.num_admitted);
        }
        let preempted_before = self.num_preemptions();
        self.plan_running(&mut budget);
        // Whoever was preempted a moment ago must not be let in again by the same step.
        if self.num_preemptions() == preempted_before {
            self.admit(&mut budget);
        }
        if self.plan.seqs.is_empty() && !self.running.is_empty() {
            // A group was let in that is not through with its preemption, and nothing is beside it.
            self.plan_running(&mut budget);
        }
        self.plan_drafts(&mut budget);
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

    /// Plans what runs.
    fn plan_running(&mut self, budget: &mut Budget) {
        let num_prefills = self.plan_decodes(budget);
        if num_prefills > 0 {
            self.plan_prefills(0..self.running.len(), budget);
        }
    }

    /// Plans every running sequence that lacks one token, group by group, preempting from the
    /// other end when the pool is empty. Returns how many running sequences lack more.
    ///
    /// A group gets all its blocks before anything is done for one that comes after it. What is
    /// copied for a group keeps blocks busy until the step is done, even if that group is
    /// preempted again: those before it could not have them, and the first of all might find the
    /// pool too small.
    fn plan_decodes(&mut self, budget: &mut Budget) -> usize {
        let mut num_prefills = 0;
        let mut at = 0;
        while at < self.running.len() {
            self.admit_urgent(at);
            let gone = at == self.running.len();
            if gone || (self.num_tableless > 0 && !self.give_tables(at)) {
                break;
            }
            let group = self.group_of(self.running[at]);
            let (order, lockstep) = (group.order, group.lockstep);
            let end = at + group.members.len();
            let is_behind = |slot: &u32| self.sequences[*slot as usize].is_behind();
            let num_behind = self.running[at..end]
                .iter()
                .filter(|s| is_behind(s))
                .count();
            num_prefills += num_behind;
            if lockstep && num_behind > 0 {
                at = end;
                continue;
            }
            // All slots first: if this group must make way itself, none of it is planned.
            let reserved = (at..end).all(|i| self.reserve_last_of(i, order));
            if !reserved {
                break;
            }
            for i in at..end {
                if !self.sequences[self.running[i] as usize].is_behind() {
                    self.plan_chunk(self.running[i], 0, budget);
                }
            }
            at = end;
        }
        num_prefills
    }

    /// Makes sure that the decode at this place of the running has a slot. False if its own
    /// group was preempted for want of one, which is then the last.
    fn reserve_last_of(&mut self, place: usize, order: Order) -> bool {
        let slot = self.running[place];
        if self.sequences[slot as usize].is_behind() {
            return true;
        }
        while !self.reserve_last(slot) {
            if self.preempt_last() == order {
                return false;
            }
        }
        true
    }

    /// Gives what is left of the budget to prompts under way at these places of the running, in
    /// order. Their slots were reserved when they got their tables.
    fn plan_prefills(&mut self, places: Range<usize>, budget: &mut Budget) {
        for at in places {
            if *budget == 0 {
                break;
            }
            let slot = self.running[at];
            let sequence = &self.sequences[slot as usize];
            if sequence.table.is_none() || sequence.in_flight {
                continue;
            }
            // The last token of one is computed when all of them are that far.
            let group = self.group_of(slot);
            let held_back = usize::from(group.lockstep && group.members.len() > 1);
            if sequence.num_remaining() > 1 {
                self.plan_chunk(slot, held_back, budget);
            }
        }
    }

    /// Lets waiting groups in, strictly in order: the head waits until it fits, and nobody
    /// overtakes it.
    fn admit(&mut self, budget: &mut Budget) {
        while *budget > 0 {
            let Some(group) = self.waiting.front() else {
                break;
            };
            if !self.asks_admission(group, *budget) || !self.admit_group(group) {
                break;
            }
            let first = self.first_place(self.groups[group as usize].order);
            self.plan_admitted(first, budget);
        }
    }

    /// Whether the rule of admission, if there is one, lets a waiting group begin.
    fn asks_admission(&mut self, group: u32, budget: Budget) -> bool {
        let entry = &mut self.groups[group as usize];
        let Some(admission) = self.admission.as_mut().filter(|_| !entry.admitted) else {
            return true;
        };
        let sequence = &self.sequences[entry.members[0] as usize];
        entry.admitted = admission.admit(&Applicant {
            id: entry.first,
            num_prompt_tokens: sequence.num_prompt,
            max_tokens: sequence.max_len - sequence.num_prompt,
            num_seqs: entry.num_seats,
            budget,
        });
        self.num_admitted += usize::from(entry.admitted);
        entry.admitted
    }

    /// Plans what it can of a group just let in, whose members begin at this place.
    fn plan_admitted(&mut self, first: usize, budget: &mut Budget) {
        let num_members = self.group_of(self.running[first]).members.len();
        let places = first..first + num_members;
        // If the first was found in the cache, the others can share it already.
        for at in places.clone() {
            let slot = self.running[at];
            if self.sequences[slot as usize].table.is_none() && !self.share_table(slot).is_done() {
                break;
            }
        }
        let is_decode = |&slot: &u32| !self.sequences[slot as usize].is_behind();
        if !self.running[places.clone()].iter().all(is_decode) {
            self.plan_prefills(places, budget);
            return;
        }
        // Brought back from the host: all or, by the next step, which may preempt for them.
        let reserved = places.clone().all(|at| self.reserve_last(self.running[at]));
        if reserved && num_members <= *budget {
            for at in places {
                self.plan_chunk(self.running[at], 0, budget);
            }
        }
    }

    /// With priorities: lets the head of the queue in before the running group at this place, at
    /// the cost of less urgent groups from there on, if it does not fit beside them.
    fn admit_urgent(&mut self, at: usize) {
        if self.config.policy == SchedulingPolicy::Fcfs {
            return;
        }
        while let (Some(head), Some(&next)) = (self.waiting.front(), self.running.get(at)) {
            let last = *self.running.last().expect("one runs");
            let (head_group, last_group) = (&self.groups[head as usize], self.group_of(last));
            let yields = head_group.priority < last_group.priority
                && head_group.order < self.group_of(next).order;
            let budget = self.config.max_num_batched_tokens;
            if !yields || !self.asks_admission(head, budget) || self.admit_group(head) {
                return;
            }
            self.preempt_last();
            if self.running.len() == at {
                self.admit_group(head);
            }
        }
    }

    /// Plans as many of the sequence's remaining tokens as the budget has, but for the last
    /// `held_back`.
    fn plan_chunk(&mut self, slot: u32, held_back: usize, budget: &mut Budget) {
        let threshold = match self.config.long_prefill_token_threshold {
            0 => usize::MAX,
            tokens => tokens,
        };
        debug_assert_eq!(self.group_of(slot).place, Place::Running);
        let sequence = &mut self.sequences[slot as usize];
        let remaining = sequence.num_remaining();
        let chunk = (remaining - held_back).min(threshold).min(*budget);
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
            num_drafts: 0,
            scores: scores_start..scores_end,
            sample: chunk == remaining && sequence.tokens.len() < sequence.max_len,
        });
    }
}
