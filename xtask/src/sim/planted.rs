//! Bugs to plant, one at a time, each a true one somewhere else: in the block manager, the
//! scheduler, the engine, and in an executor's transfers.

/// A bug and where it goes.
#[derive(Debug)]
pub(crate) struct Planted {
    pub(crate) name: &'static str,
    /// What it breaks.
    pub(crate) breaks: &'static str,
    /// From the workspace's root.
    pub(crate) file: &'static str,
    /// Must occur exactly once.
    pub(crate) find: &'static str,
    pub(crate) replacement: &'static str,
}

pub(crate) const PLANTED: &[Planted] = &[
    Planted {
        name: "host source unpinned",
        breaks: "a host block that is being brought back may be overwritten by what the same step \
                 moves out",
        file: "block-manager/src/ops.rs",
        find: "Self::In { src, dst } => (Some((Tier::Host, src)), (Tier::Device, dst)),",
        replacement: "Self::In { dst, .. } => (None, (Tier::Device, dst)),",
    },
    Planted {
        name: "unfinished copy swapped out",
        breaks: "a block that is copied and moved out in one step is moved before it is copied",
        file: "block-manager/src/swap.rs",
        find: "Origin::Device(src) => Target::New { src },",
        replacement: "Origin::Device(_) => Target::New { src: block },",
    },
    Planted {
        name: "namespaces ignored",
        breaks: "a prompt finds in the cache what another tenant computed; no output changes",
        file: "block-manager/src/index.rs",
        find: "            hash_state: namespace.0,\n            parent: namespace.0,",
        replacement: "            hash_state: namespace.0 & 0,\n            parent: 0,",
    },
    Planted {
        name: "shared tail written after a swap",
        breaks: "a group brought back from the host writes on in tails that its members share",
        file: "scheduler/src/blocks.rs",
        find: "            sequence.num_slots = sequence.num_computed;\n        }\n        true",
        replacement: "            sequence.num_slots += 0;\n        }\n        true",
    },
    Planted {
        name: "samples mixed up by recompute",
        breaks: "a recomputed sample shares all of its sibling's tokens, not only the same ones",
        file: "scheduler/src/blocks.rs",
        find: "pairs.take_while(|(a, b)| a == b).count();",
        replacement: "pairs.count();",
    },
    Planted {
        name: "failed step published",
        breaks: "full blocks of a failed step can be found by later prompts",
        file: "scheduler/src/report.rs",
        find: "        if result == SeqResult::Failed {\n            self.end(slot);",
        replacement: "        if result == SeqResult::Failed {\n            \
                      let size = self.blocks.config().block_size;\n            \
                      let end = planned.positions.end / size * size;\n            \
                      if let Some(table) = sequence.table && end > sequence.num_committed {\n\
                      self.blocks.commit(table, &sequence.tokens[sequence.num_committed..end]);\n\
                      }\n            self.end(slot);",
    },
    Planted {
        name: "aborted while swapped out",
        breaks: "a request that is aborted while it waits on the host keeps its blocks there",
        file: "scheduler/src/scheduler.rs",
        find: "        if let Some(table) = table {\n            self.blocks.release(table);",
        replacement: "        let runs = self.groups[group as usize].place == Place::Running;\n        \
                      if let Some(table) = table.filter(|_| runs) {\n            \
                      self.blocks.release(table);",
    },
    Planted {
        name: "age forgotten",
        breaks: "an urgent arrival takes the place of background work whose turn has come",
        file: "scheduler/src/schedule.rs",
        find: "\n                && head_group.order < self.group_of(next).order;",
        replacement: "\n                && next == next;",
    },
    Planted {
        name: "members counted as if alone",
        breaks: "a group that was swapped out before it was whole again needs more blocks than \
                 there are, and all wait for ever; this one was in the sources once",
        file: "scheduler/src/blocks.rs",
        find: "None => (sequence.num_prompt / block_size, true),",
        replacement: "None => (0, false),",
    },
    Planted {
        name: "beams out of step",
        breaks: "after a preemption some beams of a search draw a token without the others",
        file: "scheduler/src/schedule.rs",
        find: "            if lockstep && num_behind > 0 {",
        replacement: "            if lockstep && num_behind > 64 {",
    },
    Planted {
        name: "rejected draft published",
        breaks: "a block is published whose last slot has the keys and values of a draft, and not \
                 those of the token drawn instead",
        file: "scheduler/src/drafts.rs",
        find: "        self.commit_computed(slot);\n",
        replacement: "        self.sequences[slot as usize].num_computed += 1;\n        \
                      self.commit_computed(slot);\n        \
                      self.sequences[slot as usize].num_computed -= 1;\n        \
                      self.sequences[slot as usize].num_committed -= 1;\n",
    },
    Planted {
        name: "draft blocks kept",
        breaks: "blocks of rejected drafts stay in their tables; no output changes",
        file: "scheduler/src/drafts.rs",
        find: "        if sequence.num_slots <= sequence.tokens.len().next_multiple_of(block_size) {",
        replacement: "        if sequence.num_slots <= sequence.num_slots.max(block_size) {",
    },
    Planted {
        name: "one draft too many",
        breaks: "what was drawn behind a rejected draft is taken, too",
        file: "engine/src/step.rs",
        find: "        if ends || drafts.get(num_accepted) != Some(&token) {",
        replacement: "        let last = num_accepted.saturating_sub(1);\n        \
                      if ends || num_accepted == drafts.len() || (num_accepted > 0 \
                      && state.as_ref().is_some_and(|s| s.drawn[last].token != drafts[last])) {",
    },
    Planted {
        name: "drafts unseen by penalties",
        breaks: "a row behind a draft is drawn as if the draft had not been generated",
        file: "engine/src/batch.rs",
        find: "true => [tokens, &drafts[..num_before]].concat(),",
        replacement: "true => [tokens, &drafts[..0]].concat(),",
    },
    Planted {
        name: "owed transfers forgotten",
        breaks: "what a step that could not be submitted was to move is never moved",
        file: "engine/src/step.rs",
        find: "            batch::fill_transfers(&mut self.owed, plan);",
        replacement: "            let _ = plan;",
    },
    Planted {
        name: "first sample forgotten",
        breaks: "when a sample fails before it is forked, an abort does not end the first, which \
                 was fine; this one was in the sources once",
        file: "engine/src/report.rs",
        find: "seq != state.id || goes_on);",
        replacement: "seq != state.id || (goes_on && false));",
    },
    Planted {
        name: "transfers out of order",
        breaks: "an executor brings blocks in before it has moved out what was in their places",
        file: "engine/src/simulator.rs",
        find: "        for &(src, dst) in shuffled(&batch.swap_outs, batch.step) {",
        replacement: "        for &(src, dst) in shuffled(&batch.swap_ins, batch.step) {\n            \
                      slots[range(dst)].copy_from_slice(&host[range(src)]);\n        }\n        \
                      for &(src, dst) in shuffled(&batch.swap_outs, batch.step) {",
    },
];
