//! Drafts: guesses at what a sequence goes on with, computed beside its last token.

use pageloom_block_manager::TokenId;

use crate::{PlannedSeq, Scheduler, SeqId};

impl Scheduler {
    /// Asks `propose`, for each running sequence that has drawn a token and lacks only its last,
    /// what it may go on with: the closure gets the sequence and its tokens, and a list to fill.
    ///
    /// The next [`schedule`](Self::schedule) plans as many of these drafts, in order, as fit into
    /// what everything else leaves of the budget and of the blocks: nothing waits, and nobody is
    /// preempted, for a draft. A draft that was planned is a draft no longer once the step is
    /// reported, whatever became of it.
    ///
    /// Those in lockstep are not asked for: what they go on with is not drawn.
    ///
    /// # Panics
    /// If a step is in flight.
    pub fn propose(&mut self, mut propose: impl FnMut(SeqId, &[TokenId], &mut Vec<TokenId>)) {
        assert!(self.in_flight.is_none(), "drafts for a step in flight");
        for &slot in &self.running {
            let sequence = &mut self.sequences[slot as usize];
            sequence.drafts.clear();
            // One more than the drafts is drawn.
            let most = sequence.max_len.saturating_sub(sequence.tokens.len() + 1);
            let has_drawn = sequence.tokens.len() > sequence.num_prompt;
            let lockstep = self.groups[sequence.group as usize].lockstep;
            if most == 0 || !has_drawn || lockstep || sequence.is_behind() {
                continue;
            }
            propose(sequence.id, &sequence.tokens, &mut sequence.drafts);
            sequence.drafts.truncate(most);
            self.has_drafts |= !sequence.drafts.is_empty();
        }
    }

    /// The drafts that the step in flight computes for one of its sequences: the tokens at the
    /// last [`PlannedSeq::num_drafts`] of its positions.
    ///
    /// # Panics
    /// If `planned` is not of the step in flight.
    #[must_use]
    pub fn drafts(&self, planned: &PlannedSeq) -> &[TokenId] {
        &self.sequences[planned.id.index()].drafts[..planned.num_drafts]
    }

    /// Adds drafts to what is planned already: after everything else, so that they only get what
    /// nobody else could use in this step.
    pub(crate) fn plan_drafts(&mut self, budget: &mut usize) {
        if !core::mem::take(&mut self.has_drafts) {
            return;
        }
        for at in 0..self.plan.seqs.len() {
            let planned = &self.plan.seqs[at];
            let is_decode = planned.sample && planned.positions.len() == 1;
            let slot = planned.id.index;
            let wanted = self.sequences[slot as usize].drafts.len().min(*budget);
            if !is_decode || wanted == 0 {
                continue;
            }
            let num_drafts = self.reserve_drafts(slot, wanted);
            let planned = &mut self.plan.seqs[at];
            planned.num_drafts = num_drafts;
            planned.positions.end += num_drafts;
            self.plan.num_tokens += num_drafts;
            *budget -= num_drafts;
        }
    }

    /// Makes sure of slots behind a sequence's last token, which has one; returns how many of
    /// those wanted there are. Takes whole blocks, and only such as are not in use.
    fn reserve_drafts(&mut self, slot: u32, wanted: usize) -> usize {
        let block_size = self.block_size();
        let sequence = &mut self.sequences[slot as usize];
        let num_tokens = sequence.tokens.len();
        let room = sequence.num_slots - num_tokens;
        if wanted <= room {
            return wanted;
        }
        let num_blocks = (wanted - room)
            .div_ceil(block_size)
            .min(self.blocks.num_available_blocks());
        let num_slots = sequence.num_slots + num_blocks * block_size;
        let table = sequence.table.expect("what is planned has a table");
        let missing = num_slots - sequence.num_committed;
        if num_blocks == 0 || self.blocks.reserve(table, missing).is_err() {
            return room;
        }
        sequence.num_slots = num_slots;
        wanted.min(num_slots - num_tokens)
    }

    /// Appends the first `num_accepted` drafts of a step that is reported to the sequence's tokens.
    /// Returns where the positions end that are to be kept.
    pub(crate) fn accept(&mut self, planned: &PlannedSeq, num_accepted: usize) -> usize {
        let num_drafts = planned.num_drafts;
        assert!(
            num_accepted <= num_drafts,
            "{num_accepted} of {num_drafts} drafts of sequence {} were accepted",
            planned.id
        );
        if num_drafts > 0 {
            let sequence = &mut self.sequences[planned.id.index()];
            let accepted = &sequence.drafts[..num_accepted];
            sequence.tokens.extend_from_slice(accepted);
            sequence.drafts.clear();
            self.stats.num_drafts += 1;
            self.stats.num_draft_tokens += num_drafts as u64;
            self.stats.num_accepted_tokens += num_accepted as u64;
        }
        planned.positions.end - num_drafts + num_accepted
    }

    /// Gives back the blocks of rejected drafts that the next token has no use for. Rejected ones
    /// in a block that is kept are written over.
    pub(crate) fn give_back_drafts(&mut self, slot: u32) {
        let block_size = self.block_size();
        let sequence = &self.sequences[slot as usize];
        if sequence.num_slots <= sequence.tokens.len().next_multiple_of(block_size) {
            return;
        }
        self.commit_computed(slot);
        let sequence = &mut self.sequences[slot as usize];
        let table = sequence.table.expect("what was computed is in a table");
        self.blocks.truncate(table, sequence.num_computed);
        sequence.num_slots = sequence.num_computed;
    }
}
