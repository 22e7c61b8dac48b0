//! Who holds blocks: letting groups in, and preempting them.

use pageloom_block_manager::TableId;

use crate::{
    PreemptionMode, Scheduler,
    group::{Order, Place},
};

impl Scheduler {
    /// Gives the group at the head of the queue its seats, and blocks: brought back from the
    /// host, or a table for its first sequence. Changes nothing and returns false if it does not
    /// fit.
    pub(crate) fn admit_group(&mut self, group: u32) -> bool {
        let entry = &self.groups[group as usize];
        let (order, place) = (entry.order, entry.place);
        let first = entry.members[0];
        if self.num_seats + entry.num_seats > self.config.max_num_seqs {
            return false;
        }
        let available = self.blocks.num_available_blocks();
        let alone = self.running.is_empty();
        let blocked = self
            .blocked
            .is_some_and(|(head, at)| head == order && available <= at);
        if blocked && !alone {
            return false;
        }
        // Alone, it may have what would be left for others.
        let keep = if alone { 0 } else { self.watermark_blocks() };
        let fits = match place {
            Place::Swapped => self.swap_in(group, keep),
            _ => {
                // What it had to itself it will need again, and not only for its first.
                let lost = self.groups[group as usize].num_blocks_lost;
                (alone || available >= keep + lost) && self.open_table(first, keep)
            }
        };
        if !fits {
            self.blocked = Some((order, available));
            return false;
        }
        self.blocked = None;
        self.waiting.pop_front();
        self.unqueue(group);
        let at = self.first_place(order);
        let entry = &mut self.groups[group as usize];
        entry.place = Place::Running;
        self.num_seats += entry.num_seats;
        self.stats.num_waiting -= entry.members.len();
        self.running.splice(at..at, entry.members.iter().copied());
        self.num_tableless += self.count_tableless(group);
        true
    }

    fn count_tableless(&self, group: u32) -> usize {
        let members = self.groups[group as usize].members.iter();
        let tableless = |slot: &&u32| self.sequences[**slot as usize].table.is_none();
        members.filter(tableless).count()
    }

    /// Gives a sequence a table with room for all its tokens, cached blocks first. Changes
    /// nothing and returns false if `keep` blocks would not be left.
    fn open_table(&mut self, slot: u32, keep: usize) -> bool {
        let block_size = self.block_size();
        let sequence = &mut self.sequences[slot as usize];
        // Scores come from computing: a position found in the cache has no logits.
        let known: &[_] = if sequence.needs_scores() {
            &[]
        } else {
            &sequence.tokens
        };
        let num_tokens = sequence.tokens.len();
        let num_slots = num_tokens.next_multiple_of(block_size);
        let admitted = self
            .blocks
            .admit(known, num_slots, sequence.namespace, keep);
        let Ok((table, num_cached)) = admitted else {
            return false;
        };
        let num_known = known.len();
        sequence.table = Some(table);
        sequence.num_computed = num_cached;
        sequence.num_committed = num_cached;
        sequence.num_slots = num_slots;
        if self.groups[sequence.group as usize].queued.is_some() {
            sequence.num_cached = num_cached;
            self.stats.num_prefix_queries += num_known as u64;
            self.stats.num_prefix_hits += num_cached as u64;
            // Its tokens never move again while it runs.
            let to_come = sequence.max_len - num_tokens;
            sequence.tokens.reserve_exact(to_come);
        }
        true
    }

    /// Gives tables to the members of the running group at this place, if it was preempted and
    /// they have none yet: each shares what it has in common with one before it, as soon as that
    /// is computed again. False if the group itself was preempted for want of blocks, which is
    /// then the last.
    pub(crate) fn give_tables(&mut self, first: usize) -> bool {
        let group = self.group_of(self.running[first]);
        let (order, num_members) = (group.order, group.members.len());
        for at in first..first + num_members {
            let slot = self.running[at];
            if self.sequences[slot as usize].table.is_some() {
                continue;
            }
            while self.share_table(slot) == Shared::NoRoom {
                if self.preempt_last() == order {
                    return false;
                }
            }
        }
        true
    }

    /// Gives a member of a running group a table with what it has in common with those before
    /// it, and room for the rest.
    pub(crate) fn share_table(&mut self, slot: u32) -> Shared {
        let sequence = &self.sequences[slot as usize];
        let members = &self.groups[sequence.group as usize].members;
        let before = members.iter().take_while(|&&member| member != slot);
        let mut best = None;
        for &other in before {
            let other = &self.sequences[other as usize];
            if other.is_behind() {
                return Shared::NotYet;
            }
            // One token is left to compute: its logits are wanted.
            let most = other.num_computed.min(sequence.tokens.len() - 1);
            let pairs = other.tokens[..most].iter().zip(&sequence.tokens);
            let num_common = pairs.take_while(|(a, b)| a == b).count();
            if best.is_none_or(|(_, most)| num_common > most) {
                best = Some((other.id.index, num_common));
            }
        }
        let Some((source, num_common)) = best else {
            // The first of its group has ended meanwhile: this one now computes for the others.
            if !self.open_table(slot, 0) {
                return Shared::NoRoom;
            }
            self.num_tableless -= 1;
            return Shared::Yes;
        };
        let table = self.fork_table(source);
        self.blocks.truncate(table, num_common);
        let num_slots = self.sequences[slot as usize]
            .tokens
            .len()
            .next_multiple_of(self.block_size());
        if self.blocks.reserve(table, num_slots - num_common).is_err() {
            self.blocks.release(table);
            return Shared::NoRoom;
        }
        let sequence = &mut self.sequences[slot as usize];
        sequence.table = Some(table);
        sequence.num_computed = num_common;
        sequence.num_committed = num_common;
        sequence.num_slots = num_slots;
        self.num_tableless -= 1;
        Shared::Yes
    }

    /// A table that shares all computed tokens of a sequence.
    pub(crate) fn fork_table(&mut self, slot: u32) -> TableId {
        self.commit_computed(slot);
        let block_size = self.block_size();
        let sequence = &mut self.sequences[slot as usize];
        if !sequence.num_computed.is_multiple_of(block_size) {
            // The tail is shared from now on.
            sequence.num_slots = sequence.num_computed;
        }
        let table = sequence.table.expect("what is shared is in a table");
        self.blocks.fork(table)
    }

    /// Tells the block manager of all computed tokens, those of a partial block too.
    pub(crate) fn commit_computed(&mut self, slot: u32) {
        let sequence = &mut self.sequences[slot as usize];
        if sequence.num_committed < sequence.num_computed {
            let table = sequence.table.expect("what was computed is in a table");
            let computed = &sequence.tokens[sequence.num_committed..sequence.num_computed];
            self.blocks.commit(table, computed);
            sequence.num_committed = sequence.num_computed;
        }
    }

    /// Makes sure that a sequence's last token, and all before it, have slots. The manager is asked for a
    /// whole block at a time, which costs no more than a slot of it, so most steps ask nothing.
    pub(crate) fn reserve_last(&mut self, slot: u32) -> bool {
        let block_size = self.block_size();
        let sequence = &mut self.sequences[slot as usize];
        if sequence.tokens.len() <= sequence.num_slots {
            return true;
        }
        let num_slots = sequence.tokens.len().next_multiple_of(block_size);
        let table = sequence.table.expect("what has a slot has a table");
        let missing = num_slots - sequence.num_committed;
        let reserved = self.blocks.reserve(table, missing).is_ok();
        if reserved {
            sequence.num_slots = num_slots;
        }
        reserved
    }

    pub(crate) fn watermark_blocks(&self) -> usize {
        let learned = match self.config.learn_headroom {
            true => self.headroom.share(),
            false => 0.0,
        };
        let share = self.config.watermark + learned;
        (share * self.blocks.config().num_blocks as f64).ceil() as usize
    }

    pub(crate) fn num_preemptions(&self) -> u64 {
        self.stats.num_preemptions_by_swap + self.stats.num_preemptions_by_recompute
    }

    /// Takes all blocks from the running group that comes last in the order, all its sequences
    /// together. It waits again at its place in the queue, before everything that comes after
    /// it. Returns its order.
    pub(crate) fn preempt_last(&mut self) -> Order {
        let last = *self.running.last().expect("a group is running");
        let group = self.sequences[last as usize].group;
        let entry = &mut self.groups[group as usize];
        let (order, num_members) = (entry.order, entry.members.len());
        self.num_seats -= entry.num_seats;
        self.stats.num_waiting += num_members;
        self.running.truncate(self.running.len() - num_members);
        self.num_tableless -= self.count_tableless(group);
        if self.wants_swap() && self.swap_out(group) {
            self.groups[group as usize].place = Place::Swapped;
            self.stats.num_preemptions_by_swap += 1;
        } else {
            self.drop_blocks(group);
            self.groups[group as usize].place = Place::Waiting;
            self.stats.num_preemptions_by_recompute += 1;
        }
        self.waiting.insert(order, group);
        order
    }

    fn wants_swap(&self) -> bool {
        self.blocks.config().num_host_blocks > 0
            && match self.config.preemption_mode {
                PreemptionMode::Swap => true,
                PreemptionMode::Recompute => false,
                PreemptionMode::Auto => self.costs.prefer_swap(self.block_size()),
            }
    }

    fn swap_out(&mut self, group: u32) -> bool {
        for at in 0..self.groups[group as usize].members.len() {
            let slot = self.groups[group as usize].members[at];
            if self.sequences[slot as usize].table.is_some() {
                self.commit_computed(slot);
            }
        }
        let tables = self.tables_of(group);
        if tables.is_empty() || self.blocks.swap_out(&tables).is_err() {
            return false;
        }
        for &slot in &self.groups[group as usize].members {
            let sequence = &mut self.sequences[slot as usize];
            sequence.num_slots = sequence.num_computed;
        }
        true
    }

    /// Brings a swapped group back, if there is room for the rest of its tokens too.
    fn swap_in(&mut self, group: u32, keep: usize) -> bool {
        let block_size = self.block_size();
        let members = &self.groups[group as usize].members;
        let shares_tails = members.len() > 1;
        let still_needed = |&slot: &u32| {
            let sequence = &self.sequences[slot as usize];
            // One without a table is to share the prompt at least: counted as by the door, or else
            // what it let in might not fit.
            let (held, copies_tail) = match sequence.table {
                Some(_) => (
                    sequence.num_computed.div_ceil(block_size),
                    shares_tails && !sequence.num_computed.is_multiple_of(block_size),
                ),
                None => (sequence.num_prompt / block_size, true),
            };
            sequence.tokens.len().div_ceil(block_size) - held + usize::from(copies_tail)
        };
        let num_needed: usize = members.iter().map(still_needed).sum();
        let tables = self.tables_of(group);
        if self.blocks.swap_in(&tables, keep.max(num_needed)).is_err() {
            return false;
        }
        for at in 0..self.groups[group as usize].members.len() {
            let slot = self.groups[group as usize].members[at];
            let has_table = self.sequences[slot as usize].table.is_some();
            let reserved = has_table && self.reserve_last(slot);
            debug_assert_eq!(reserved, has_table, "room was kept for it");
        }
        true
    }

    fn tables_of(&self, group: u32) -> Vec<TableId> {
        let members = self.groups[group as usize].members.iter();
        members
            .filter_map(|&slot| self.sequences[slot as usize].table)
            .collect()
    }

    /// Gives the blocks of a group back. Its full blocks stay findable until others need them.
    fn drop_blocks(&mut self, group: u32) {
        let before = self.blocks.num_available_blocks();
        for &slot in &self.groups[group as usize].members {
            let sequence = &mut self.sequences[slot as usize];
            sequence.forget_computed();
            if let Some(table) = sequence.table.take() {
                self.blocks.release(table);
            }
        }
        let freed = self.blocks.num_available_blocks() - before;
        self.groups[group as usize].num_blocks_lost = freed;
    }
}

impl Shared {
    pub(crate) fn is_done(self) -> bool {
        self == Self::Yes
    }
}

/// What came of giving a member of a preempted group its table back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shared {
    Yes,
    /// What it shares is not computed again yet.
    NotYet,
    NoRoom,
}
