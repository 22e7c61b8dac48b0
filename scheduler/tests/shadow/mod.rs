//! An executor that keeps the cache's contents, and what every plan must satisfy.

use std::collections::{BTreeMap, HashMap};

use std::time::Duration;

use pageloom_scheduler::{
    AdmissionError, BlockManager, Config, EndReason, Namespace, NewSequence, Scheduler,
    SchedulingPolicy, SeqEvent, SeqId, SeqResult, StepTimes, TokenId,
};

/// What the shadow knows of a living sequence.
#[derive(Debug, Clone)]
pub(crate) struct Mirror {
    pub(crate) namespace: Namespace,
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) num_prompt: usize,
    pub(crate) max_len: usize,
    pub(crate) score_prompt: bool,
    pub(crate) num_scored: usize,
    /// The first sequence of its group.
    pub(crate) root: SeqId,
    pub(crate) num_seqs: usize,
    pub(crate) lockstep: bool,
    /// Place in the order of all groups.
    pub(crate) order: (i64, usize),
    pub(crate) is_fork: bool,
    /// Tokens in the cache after its last step; `None` before the first.
    pub(crate) num_computed: Option<usize>,
    /// The same, but 0 since it was last preempted.
    pub(crate) in_cache: usize,
    pub(crate) prompt_reported: bool,
}

/// A scheduler with a shadow of everything it decides about.
pub(crate) struct Shadow {
    pub(crate) scheduler: Scheduler,
    pub(crate) mirrors: HashMap<SeqId, Mirror>,
    /// How each sequence ended, with all its tokens.
    pub(crate) finished: Vec<(Mirror, EndReason)>,
    /// Groups of which a sequence failed or was aborted.
    pub(crate) disturbed: Vec<SeqId>,
    /// Per slot of the device: the hash of all tokens up to the one it holds.
    slots: Vec<u64>,
    /// The same on the host.
    host_slots: Vec<u64>,
    block_size: usize,
    num_added: usize,
    now: u64,
    /// Most drafts proposed for a sequence.
    num_drafts: usize,
    last_admitted: Option<(i64, usize)>,
}

/// Stands for the keys and values of a token, which depend on all tokens before it.
fn extend(state: u64, token: TokenId) -> u64 {
    (state ^ u64::from(token).wrapping_add(0x9E37_79B9_7F4A_7C15))
        .wrapping_mul(0xD6E8_FEB8_6659_FD93)
        .rotate_left(23)
}

fn hash(namespace: Namespace, tokens: &[TokenId]) -> u64 {
    tokens
        .iter()
        .fold(namespace.0, |state, &t| extend(state, t))
}

/// The token that follows.
fn draw(state: u64) -> TokenId {
    state as TokenId % 3
}

impl Shadow {
    pub(crate) fn new(config: Config, blocks: pageloom_block_manager::Config) -> Self {
        Shadow {
            slots: vec![0; blocks.num_blocks * blocks.block_size],
            host_slots: vec![0; blocks.num_host_blocks * blocks.block_size],
            block_size: blocks.block_size,
            scheduler: Scheduler::new(config, BlockManager::new(blocks).unwrap()).unwrap(),
            mirrors: HashMap::new(),
            finished: Vec::new(),
            disturbed: Vec::new(),
            num_added: 0,
            now: 0,
            num_drafts: 0,
            last_admitted: None,
        }
    }

    /// Has up to so many drafts proposed for every sequence from now on.
    pub(crate) fn with_drafts(mut self, num_drafts: usize) -> Self {
        self.num_drafts = num_drafts;
        self
    }

    /// What sequences go on with, but for one draft in four.
    fn propose(&mut self) {
        let (mirrors, most) = (&self.mirrors, self.num_drafts);
        self.scheduler.propose(|id, tokens, drafts| {
            let mut state = hash(mirrors[&id].namespace, tokens);
            for at in 0..most {
                let token = draw(state);
                state = extend(state, token);
                drafts.push(if (tokens.len() + at) % 4 == 3 {
                    token + 1
                } else {
                    token
                });
            }
        });
    }

    pub(crate) fn add(&mut self, new: NewSequence) -> Result<SeqId, AdmissionError> {
        self.now += 1;
        let now = Duration::from_millis(self.now);
        let due = match self.scheduler.config().policy {
            SchedulingPolicy::Fcfs => 0,
            SchedulingPolicy::Priority { ageing } => {
                (now.as_micros() as i64) + i64::from(new.priority) * ageing.as_micros() as i64
            }
        };
        let id = self.scheduler.add(new.clone(), now)?;
        let mirror = Mirror {
            namespace: new.namespace,
            num_prompt: new.prompt.len(),
            max_len: new.prompt.len() + new.max_tokens,
            tokens: new.prompt,
            score_prompt: new.score_prompt,
            num_scored: 0,
            root: id,
            num_seqs: new.num_seqs,
            lockstep: new.lockstep,
            order: (due, self.num_added),
            is_fork: false,
            num_computed: None,
            in_cache: 0,
            prompt_reported: false,
        };
        self.num_added += 1;
        self.mirrors.insert(id, mirror);
        Ok(id)
    }

    pub(crate) fn finish(&mut self, id: SeqId) {
        assert!(self.scheduler.finish(id));
        assert!(!self.scheduler.finish(id), "ended twice");
        assert_eq!(self.scheduler.tokens(id), None);
        let mirror = self.mirrors.remove(&id).expect("alive");
        self.disturbed.push(mirror.root);
        self.check();
    }

    /// One step. `fail` names the planned sequences that fail, `abort` those that are ended
    /// while it is in flight. Returns the tokens computed, or `None` if there was nothing to do.
    pub(crate) fn step(
        &mut self,
        fail: impl Fn(usize) -> bool,
        abort: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let first = self.first_running();
        let decodes = self.decodes();
        self.propose();
        let Some(plan) = self.scheduler.schedule() else {
            assert!(
                !self.scheduler.has_work(),
                "work waits and nothing progresses"
            );
            return None;
        };
        let (step, num_tokens) = (plan.step, plan.num_tokens);
        self.check_budget();
        self.check_order(first, &decodes);
        let results = self.execute(&fail);
        let ids: Vec<_> = self
            .planned()
            .into_iter()
            .map(|planned| planned.id)
            .collect();
        for (i, id) in ids.into_iter().enumerate() {
            if abort(i) && self.mirrors.contains_key(&id) {
                self.finish(id);
            }
        }
        let mut events = Vec::new();
        self.scheduler.update(step, &results, &mut events);
        self.scheduler.observe(StepTimes {
            swap: Duration::from_micros(self.now * 7919 % 100),
            compute: Duration::from_micros(self.now * 104_729 % 1000),
        });
        self.take_in(&events);
        self.branch(&events);
        self.check();
        Some(num_tokens)
    }

    fn planned(&self) -> Vec<pageloom_scheduler::PlannedSeq> {
        self.scheduler.plan().unwrap().seqs.clone()
    }

    fn check_budget(&self) {
        let plan = self.scheduler.plan().unwrap();
        let config = self.scheduler.config();
        let total: usize = plan.seqs.iter().map(|p| p.positions.len()).sum();
        assert_eq!(total, plan.num_tokens);
        assert!(total <= config.max_num_batched_tokens, "budget kept");
        assert!(self.scheduler.stats().num_running <= config.max_num_seqs);
        let threshold = config.long_prefill_token_threshold;
        for planned in &plan.seqs {
            assert!(!planned.positions.is_empty());
            let own = planned.positions.len() - planned.num_drafts;
            assert!(own > 0 && (threshold == 0 || own <= threshold));
        }
    }

    /// First come, first served: first admissions in order of arrival; and no decode waits while a
    /// prompt is computed, but for the rest of its own group in lockstep.
    fn check_order(&mut self, first: Option<(i64, usize)>, decodes: &[SeqId]) {
        let planned = self.planned();
        let fcfs = self.scheduler.config().policy == SchedulingPolicy::Fcfs;
        for p in &planned {
            let mirror = &self.mirrors[&p.id];
            if mirror.num_computed.is_none() && !mirror.is_fork && fcfs {
                assert!(self.last_admitted < Some(mirror.order), "overtaken");
                self.last_admitted = Some(mirror.order);
            }
        }
        let of_first =
            |p: &pageloom_scheduler::PlannedSeq| Some(self.mirrors[&p.id].order) == first;
        // Only a more urgent group may have taken its place.
        if first.is_some() && self.first_running() == first {
            assert!(
                planned.iter().any(of_first),
                "the first running group progresses"
            );
        }
        for id in decodes {
            if self.scheduler.blocks(*id).is_some() && !self.mirrors[id].lockstep {
                assert!(planned.iter().any(|p| p.id == *id), "a decode starves");
            }
        }
        // In lockstep all draw or none.
        for (id, mirror) in self.mirrors.iter().filter(|(_, m)| m.lockstep) {
            let draws = |id: &SeqId| planned.iter().any(|p| p.id == *id && p.sample);
            let same_group = self.mirrors.iter().filter(|(_, m)| m.root == mirror.root);
            for (other, _) in same_group {
                assert_eq!(draws(id), draws(other), "out of step");
            }
        }
    }

    /// The order of the first running group.
    fn first_running(&self) -> Option<(i64, usize)> {
        let running = |(id, _): &(&SeqId, &Mirror)| self.scheduler.blocks(**id).is_some();
        let running = self.mirrors.iter().filter(running);
        running.map(|(_, mirror)| mirror.order).min()
    }

    /// Sequences that hold blocks and of which the last step computed all but one token.
    fn decodes(&mut self) -> Vec<SeqId> {
        let mut decodes = Vec::new();
        for (id, mirror) in &mut self.mirrors {
            if self.scheduler.blocks(*id).is_none() {
                mirror.in_cache = 0;
            } else if mirror.in_cache + 1 == mirror.tokens.len() {
                decodes.push(*id);
            }
        }
        decodes
    }

    /// Does the step on the shadow memory, reading everything a model would read.
    fn execute(&mut self, fail: impl Fn(usize) -> bool) -> Vec<SeqResult> {
        let plan = self.scheduler.plan().unwrap();
        let size = self.block_size;
        // Within a list in any order: backwards, for a change.
        for swap in plan.ops.swap_outs.iter().rev() {
            let (src, dst) = (swap.src.index() * size, swap.dst.index() * size);
            self.host_slots[dst..dst + size].copy_from_slice(&self.slots[src..src + size]);
        }
        for swap in plan.ops.swap_ins.iter().rev() {
            let (src, dst) = (swap.src.index() * size, swap.dst.index() * size);
            self.slots[dst..dst + size].copy_from_slice(&self.host_slots[src..src + size]);
        }
        for copy in plan.ops.copies.iter().rev() {
            let (src, dst) = (copy.src.index() * size, copy.dst.index() * size);
            self.slots.copy_within(src..src + size, dst);
        }
        let mut results = Vec::new();
        for (i, planned) in self.planned().into_iter().enumerate() {
            let blocks = self.scheduler.blocks(planned.id).unwrap();
            let slot = |position: usize| blocks[position / size].index() * size + position % size;
            let mirror = self.mirrors.get_mut(&planned.id).unwrap();
            let tokens = self.scheduler.tokens(planned.id).unwrap();
            assert_eq!(tokens, mirror.tokens);
            let drafts = self.scheduler.drafts(&planned);
            let with_drafts = [tokens, drafts].concat();
            for position in 0..planned.positions.end {
                let expected = hash(mirror.namespace, &with_drafts[..=position]);
                if position >= planned.positions.start {
                    self.slots[slot(position)] = expected;
                }
                assert_eq!(self.slots[slot(position)], expected, "position {position}");
            }
            let own_end = planned.positions.end - drafts.len();
            let whole = own_end == tokens.len();
            assert!(drafts.is_empty() || planned.sample);
            assert!(drafts.is_empty() || with_drafts.len() < mirror.max_len);
            assert_eq!(planned.sample, whole && tokens.len() < mirror.max_len);
            if !planned.scores.is_empty() {
                assert!(mirror.score_prompt);
                assert_eq!(
                    planned.scores.start, mirror.num_scored,
                    "reported once, in order"
                );
                assert!(planned.scores.start >= planned.positions.start);
                assert!(planned.scores.end <= planned.positions.end);
                mirror.num_scored = planned.scores.end;
            }
            results.push(if fail(i) {
                SeqResult::Failed
            } else {
                let mut state = hash(mirror.namespace, tokens);
                let right = |&&draft: &&TokenId| {
                    let token = draw(state);
                    state = extend(state, token);
                    draft == token
                };
                let num_accepted = drafts.iter().take_while(right).count();
                mirror.num_computed = Some(own_end + num_accepted);
                mirror.in_cache = own_end + num_accepted;
                match planned.sample {
                    true => SeqResult::Tokens {
                        num_accepted,
                        token: draw(hash(
                            mirror.namespace,
                            &with_drafts[..tokens.len() + num_accepted],
                        )),
                    },
                    false => SeqResult::Computed,
                }
            });
        }
        results
    }

    fn take_in(&mut self, events: &[SeqEvent]) {
        for &event in events {
            match event {
                SeqEvent::PromptComputed {
                    id,
                    num_cached_tokens,
                } => {
                    let mirror = self.mirrors.get_mut(&id).expect("alive");
                    assert!(!core::mem::replace(&mut mirror.prompt_reported, true));
                    assert!(num_cached_tokens < mirror.num_prompt);
                    if mirror.score_prompt {
                        assert_eq!(mirror.num_scored, mirror.num_prompt - 1);
                        assert_eq!(num_cached_tokens, 0);
                    }
                }
                SeqEvent::Token { id, token } => {
                    let mirror = self.mirrors.get_mut(&id).expect("alive");
                    assert!(mirror.prompt_reported);
                    mirror.tokens.push(token);
                }
                SeqEvent::Ended { id, reason } => {
                    let mirror = self.mirrors.remove(&id).expect("alive");
                    assert_eq!(self.scheduler.tokens(id), None);
                    if reason == EndReason::Failed {
                        self.disturbed.push(mirror.root);
                    }
                    if reason == EndReason::Length {
                        assert_eq!(mirror.tokens.len(), mirror.max_len);
                    }
                    self.finished.push((mirror, reason));
                }
            }
        }
    }

    /// Forks what drew tokens: samples once, after the first; a beam search every time, keeping
    /// the sequences whose hash is lowest.
    fn branch(&mut self, events: &[SeqEvent]) {
        let mut grown: BTreeMap<SeqId, Vec<SeqId>> = BTreeMap::new();
        for event in events {
            if let SeqEvent::Token { id, .. } = event
                && let Some(mirror) = self.mirrors.get(id)
                && mirror.num_seqs > 1
            {
                grown.entry(mirror.root).or_default().push(*id);
            }
        }
        for (root, members) in grown {
            let first = &self.mirrors[&members[0]];
            if first.lockstep {
                self.search(&members);
            } else if !first.is_fork && first.tokens.len() == first.num_prompt + 1 {
                let last = *first.tokens.last().unwrap();
                for i in 1..first.num_seqs as u32 {
                    self.fork(root, (last + i) % 5);
                }
            }
        }
    }

    fn search(&mut self, members: &[SeqId]) {
        let width = self.mirrors[&members[0]].num_seqs;
        let mut candidates = Vec::new();
        for &id in members {
            let mirror = &self.mirrors[&id];
            let (last, before) = mirror.tokens.split_last().unwrap();
            let state = hash(mirror.namespace, before);
            for other in 0..3 {
                let token = (last + other) % 3;
                candidates.push((extend(state, token), id, token, other == 0));
            }
        }
        candidates.sort();
        candidates.truncate(width);
        // Survivors first: what only a loser shares with them must not be freed in between.
        for &(_, parent, token, is_own) in &candidates {
            if !is_own {
                self.fork(parent, token);
            }
        }
        for &id in members {
            let survives = |c: &(u64, SeqId, TokenId, bool)| c.1 == id && c.3;
            if !candidates.iter().any(survives) {
                assert!(self.scheduler.finish(id));
                self.mirrors.remove(&id);
            }
        }
    }

    fn fork(&mut self, parent: SeqId, token: TokenId) {
        let id = self.scheduler.fork(parent, token).expect("alive");
        let mut mirror = self.mirrors[&parent].clone();
        *mirror.tokens.last_mut().unwrap() = token;
        mirror.is_fork = true;
        mirror.score_prompt = false;
        assert_eq!(self.scheduler.tokens(id), Some(mirror.tokens.as_slice()));
        self.mirrors.insert(id, mirror);
    }

    /// Whatever happened: the manager is sound, and no table belongs to nobody.
    pub(crate) fn check(&self) {
        let manager = self.scheduler.block_manager();
        manager.check().unwrap();
        let stats = self.scheduler.stats();
        let alive = self.mirrors.len();
        if self.scheduler.plan().is_none() {
            assert_eq!(stats.num_running + stats.num_waiting, alive);
            assert!(manager.stats().num_tables <= alive, "a table leaked");
            for (id, mirror) in &self.mirrors {
                let blocks = self.scheduler.blocks(*id).unwrap_or_default();
                let most = mirror.tokens.len().div_ceil(self.block_size);
                assert!(blocks.len() <= most, "blocks of drafts are kept");
            }
        }
        let config = self.scheduler.config();
        assert!(stats.num_queued <= config.max_num_queued_requests);
        assert!(stats.num_queued_tokens <= config.max_num_queued_tokens);
    }

    /// Runs until nothing is left; `max_steps` is the bound on starvation.
    pub(crate) fn drain(&mut self, max_steps: usize) {
        let mut steps = 0;
        while self.step(|_| false, |_| false).is_some() {
            steps += 1;
            assert!(steps <= max_steps, "not done after {max_steps} steps");
        }
        assert!(self.mirrors.is_empty());
        let manager = self.scheduler.block_manager().stats();
        assert_eq!(manager.num_tables, 0);
        for tier in [manager.device, manager.host] {
            assert_eq!((tier.num_referenced, tier.num_pinned), (0, 0));
        }
        let stats = self.scheduler.stats();
        assert_eq!((stats.num_running, stats.num_waiting), (0, 0));
        assert_eq!((stats.num_queued, stats.num_queued_tokens), (0, 0));
    }
}
