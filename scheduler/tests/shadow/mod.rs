//! An executor that keeps the cache's contents, and what every plan must satisfy.

use std::collections::HashMap;

use pageloom_scheduler::{
    AdmissionError, BlockManager, Config, EndReason, Namespace, NewSequence, Scheduler, SeqEvent,
    SeqId, SeqResult, TokenId,
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
    pub(crate) follows: bool,
    pub(crate) arrival: usize,
    /// Tokens in the cache after its last step; `None` before the first.
    pub(crate) num_computed: Option<usize>,
    pub(crate) prompt_reported: bool,
}

/// A scheduler with a shadow of everything it decides about.
pub(crate) struct Shadow {
    pub(crate) scheduler: Scheduler,
    pub(crate) mirrors: HashMap<SeqId, Mirror>,
    /// How each sequence ended, with all its tokens.
    pub(crate) finished: Vec<(Mirror, EndReason)>,
    /// Per slot: the hash of all tokens up to the one it holds.
    slots: Vec<u64>,
    block_size: usize,
    num_added: usize,
    last_admitted: Option<usize>,
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

impl Shadow {
    pub(crate) fn new(config: Config, blocks: pageloom_block_manager::Config) -> Self {
        Shadow {
            slots: vec![0; blocks.num_blocks * blocks.block_size],
            block_size: blocks.block_size,
            scheduler: Scheduler::new(config, BlockManager::new(blocks).unwrap()).unwrap(),
            mirrors: HashMap::new(),
            finished: Vec::new(),
            num_added: 0,
            last_admitted: None,
        }
    }

    pub(crate) fn add(&mut self, new: NewSequence) -> Result<SeqId, AdmissionError> {
        let mirror = Mirror {
            namespace: new.namespace,
            tokens: new.prompt.clone(),
            num_prompt: new.prompt.len(),
            max_len: new.prompt.len().saturating_add(new.max_tokens),
            score_prompt: new.score_prompt,
            num_scored: 0,
            follows: new.follows.is_some(),
            arrival: self.num_added,
            num_computed: None,
            prompt_reported: false,
        };
        let id = self.scheduler.add(new)?;
        self.num_added += 1;
        self.mirrors.insert(id, mirror);
        Ok(id)
    }

    pub(crate) fn finish(&mut self, id: SeqId) {
        assert!(self.scheduler.finish(id));
        assert!(!self.scheduler.finish(id), "ended twice");
        assert_eq!(self.scheduler.tokens(id), None);
        self.mirrors.remove(&id);
        self.check();
    }

    /// One step. `fail` names the planned sequences that fail, `abort` those that are ended
    /// while it is in flight. Returns the tokens computed, or `None` if there was nothing to do.
    pub(crate) fn step(
        &mut self,
        fail: impl Fn(usize) -> bool,
        abort: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let Some(plan) = self.scheduler.schedule() else {
            assert!(
                !self.scheduler.has_work(),
                "work waits and nothing progresses"
            );
            return None;
        };
        let (step, num_tokens) = (plan.step, plan.num_tokens);
        self.check_budget();
        self.check_order();
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
        self.take_in(&events);
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
            assert!(threshold == 0 || planned.positions.len() <= threshold);
        }
    }

    /// First come, first served: first admissions in order of arrival, followers aside; and no
    /// decode waits while a prompt is computed.
    fn check_order(&mut self) {
        let planned = self.planned();
        for p in &planned {
            let mirror = &self.mirrors[&p.id];
            if mirror.num_computed.is_none() && !mirror.follows {
                assert!(self.last_admitted < Some(mirror.arrival), "overtaken");
                self.last_admitted = Some(mirror.arrival);
            }
        }
        let oldest = self
            .mirrors
            .iter()
            .filter(|(id, _)| self.scheduler.blocks(**id).is_some())
            .min_by_key(|(_, mirror)| mirror.arrival);
        let (oldest, _) = oldest.expect("a plan has a running sequence");
        assert!(
            planned.iter().any(|p| p.id == *oldest),
            "the first arrived running sequence progresses"
        );
        for id in self.mirrors.keys() {
            if self.scheduler.blocks(*id).is_some() && self.is_decode(*id) {
                assert!(planned.iter().any(|p| p.id == *id), "a decode starves");
            }
        }
    }

    fn is_decode(&self, id: SeqId) -> bool {
        let mirror = &self.mirrors[&id];
        mirror
            .num_computed
            .is_some_and(|n| n + 1 == mirror.tokens.len())
    }

    /// Does the step on the shadow memory, reading everything a model would read.
    fn execute(&mut self, fail: impl Fn(usize) -> bool) -> Vec<SeqResult> {
        let plan = self.scheduler.plan().unwrap();
        let size = self.block_size;
        for copy in &plan.ops.copies {
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
            for position in 0..planned.positions.end {
                let expected = hash(mirror.namespace, &tokens[..=position]);
                if position >= planned.positions.start {
                    self.slots[slot(position)] = expected;
                }
                assert_eq!(self.slots[slot(position)], expected, "position {position}");
            }
            let whole = planned.positions.end == tokens.len();
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
                mirror.num_computed = Some(planned.positions.end);
                match planned.sample {
                    true => SeqResult::Token(hash(mirror.namespace, tokens) as TokenId % 3),
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
                    if reason == EndReason::Length {
                        assert_eq!(mirror.tokens.len(), mirror.max_len);
                    }
                    self.finished.push((mirror, reason));
                }
            }
        }
    }

    /// Whatever happened: the manager is sound, and only running sequences hold tables.
    pub(crate) fn check(&self) {
        let manager = self.scheduler.block_manager();
        manager.check().unwrap();
        let stats = self.scheduler.stats();
        assert_eq!(
            manager.stats().num_tables,
            stats.num_running,
            "a table leaked"
        );
        if self.scheduler.plan().is_none() {
            let alive = self.mirrors.len();
            assert_eq!(stats.num_running + stats.num_waiting, alive);
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
        let manager = self.scheduler.block_manager().stats().device;
        assert_eq!((manager.num_referenced, manager.num_pinned), (0, 0));
        let stats = self.scheduler.stats();
        assert_eq!((stats.num_running, stats.num_waiting), (0, 0));
        assert_eq!((stats.num_queued, stats.num_queued_tokens), (0, 0));
    }
}
