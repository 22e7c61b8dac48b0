//! An executor without a model, whose tokens depend on every byte a real one would read.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pageloom_model_runner::{
    Batch, Candidate, RowError, RowOutput, SamplingParams, StepOutput, TokenId, TokenLogprobs, Want,
};

use crate::{Executor, ExecutorError};

/// Size, speed and misbehaviour of a [`SimExecutor`].
#[derive(Debug, Clone)]
pub struct SimConfig {
    /// Tokens a block holds.
    pub block_size: usize,
    /// Blocks of the cache.
    pub num_blocks: usize,
    /// Blocks of the host tier.
    pub num_host_blocks: usize,
    /// Tokens are below this.
    pub vocab_size: usize,
    /// Time a step takes whatever it computes.
    pub step_time: Duration,
    /// Time each token of a step adds.
    pub token_time: Duration,
    /// Time each block moved between the tiers adds.
    pub swap_time: Duration,
    /// Sleep for that time; otherwise it only passes on [`SimClock`].
    pub sleep: bool,
    /// Steps, by number, at which something goes wrong. Each entry strikes once: the
    /// transfers of a step that could not be submitted come again under its number.
    pub faults: Vec<(u64, SimFault)>,
    /// Rows whose context has this token fail.
    pub poison_token: Option<TokenId>,
}

impl Default for SimConfig {
    fn default() -> Self {
        SimConfig {
            block_size: 16,
            num_blocks: 1024,
            num_host_blocks: 0,
            vocab_size: 256,
            step_time: Duration::from_millis(10),
            token_time: Duration::from_micros(100),
            swap_time: Duration::from_micros(100),
            sleep: false,
            faults: Vec::new(),
            poison_token: None,
        }
    }
}

/// What goes wrong at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimFault {
    /// `submit` returns an error and nothing is done.
    Submit,
    /// The same, at the first step from this one on that has transfers.
    SubmitTransfers,
    /// `wait` returns an error after the transfers, with some of the step written.
    Wait,
    /// `wait` panics after the transfers, with some of the step written.
    Panic,
    /// This output row fails, all others are fine.
    Row(usize),
}

impl SimFault {
    fn is_of_submit(self) -> bool {
        matches!(self, SimFault::Submit | SimFault::SubmitTransfers)
    }

    /// Whether a fault that is to come at step `at` comes with this one.
    fn strikes(self, at: u64, batch: &Batch) -> bool {
        match self {
            SimFault::SubmitTransfers => at <= batch.step && batch.has_transfers(),
            _ => at == batch.step,
        }
    }
}

/// The virtual time of a simulator, readable from anywhere.
#[derive(Debug, Clone, Default)]
pub struct SimClock(Arc<AtomicU64>);

impl SimClock {
    /// Time since the simulator was made.
    #[must_use]
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }

    /// Lets time pass, as an idle engine does until the next request arrives.
    pub fn advance(&self, by: Duration) {
        let nanos = u64::try_from(by.as_nanos()).expect("less than 584 years");
        self.0.fetch_add(nanos, Ordering::Relaxed);
    }
}

/// Stands in for a model: stores what it is given into a paged cache through the slots, and
/// draws each token from a hash of what it reads back through the block table. A wrong slot,
/// table, copy, share or free changes what it draws, so comparing outputs finds them all.
///
/// Of [`SamplingParams`] it honours `temperature` (0 or not), `top_k`, `seed`,
/// `allowed_token_ids`, `stop_token_ids` with `min_tokens`, and `logprobs`; the penalties only in
/// that the history it is given is part of the hash. Its distribution is geometric: the best
/// token has probability 1/2, the next 1/4, and so on.
#[derive(Debug)]
pub struct SimExecutor {
    config: SimConfig,
    clock: SimClock,
    /// Per slot: the token whose keys and values it holds, and its position.
    slots: Vec<(TokenId, u32)>,
    /// The same on the host.
    host_slots: Vec<(TokenId, u32)>,
    submitted: Option<Batch>,
}

impl SimExecutor {
    /// Makes a simulator with an empty cache.
    #[must_use]
    pub fn new(config: SimConfig) -> Self {
        let empty = |num_blocks| vec![(TokenId::MAX, u32::MAX); num_blocks * config.block_size];
        SimExecutor {
            slots: empty(config.num_blocks),
            host_slots: empty(config.num_host_blocks),
            clock: SimClock::default(),
            submitted: None,
            config,
        }
    }

    /// The clock its steps advance.
    #[must_use]
    pub fn clock(&self) -> SimClock {
        self.clock.clone()
    }

    /// The first fault of a step in its submission or in its wait; it will not strike again.
    fn strike(&mut self, batch: &Batch, of_submit: bool) -> Option<SimFault> {
        let faults = &mut self.config.faults;
        let strikes = |&(at, fault): &(u64, SimFault)| {
            fault.is_of_submit() == of_submit && fault.strikes(at, batch)
        };
        let place = faults.iter().position(strikes)?;
        Some(faults.remove(place).1)
    }

    /// Lets the time of a step pass; returns how much of it the swaps took.
    fn pass_time(&self, batch: &Batch) -> Duration {
        let count = |n: usize| u32::try_from(n).expect("a step has less than 2^32 of anything");
        let num_swaps = count(batch.swap_outs.len() + batch.swap_ins.len());
        let swap_time = self.config.swap_time * num_swaps;
        let compute = self.config.step_time + self.config.token_time * count(batch.tokens.len());
        let time = swap_time + compute;
        self.clock.advance(time);
        if self.config.sleep {
            std::thread::sleep(time);
        }
        swap_time
    }

    /// Moves blocks: the lists one after the other, each in an order of the step's own.
    fn transfer(&mut self, batch: &Batch) {
        let size = self.config.block_size;
        let (slots, host) = (&mut self.slots, &mut self.host_slots);
        let range = |block: u32| block as usize * size..(block as usize + 1) * size;
        for &(src, dst) in shuffled(&batch.swap_outs, batch.step) {
            host[range(dst)].copy_from_slice(&slots[range(src)]);
        }
        for &(src, dst) in shuffled(&batch.swap_ins, batch.step) {
            slots[range(dst)].copy_from_slice(&host[range(src)]);
        }
        for &(src, dst) in shuffled(&batch.copies, batch.step) {
            slots.copy_within(range(src), range(dst).start);
        }
    }

    fn write(&mut self, batch: &Batch) {
        for (row, &slot) in batch.slots.iter().enumerate() {
            self.slots[slot as usize] = (batch.tokens[row], batch.positions[row]);
        }
    }

    fn output(&self, batch: &Batch, index: usize, seq: usize) -> Result<RowOutput, RowError> {
        let output = &batch.outputs[index];
        let (start, end) = (batch.table_offsets[seq], batch.table_offsets[seq + 1]);
        let table = &batch.block_tables[start as usize..end as usize];
        let position = batch.positions[output.row as usize];
        let mut hash = 0;
        for at in 0..=position as usize {
            let block = table[at / self.config.block_size] as usize;
            let (token, stored_at) =
                self.slots[block * self.config.block_size + at % self.config.block_size];
            if Some(token) == self.config.poison_token {
                return Err(RowError::NotANumber { token });
            }
            hash = mix(mix(hash, u64::from(token)), u64::from(stored_at));
        }
        match &output.want {
            Want::Score { token, top } => Ok(RowOutput {
                token: *token,
                logprobs: Some(self.logprobs(hash, *token, *top)),
                candidates: Vec::new(),
            }),
            Want::Expand {
                params,
                num_candidates,
                num_prompt_tokens,
                history,
            } => {
                let hash = history.iter().fold(hash, |h, &t| mix(h, u64::from(t)));
                let num_generated = (position as usize + 1) - *num_prompt_tokens as usize;
                self.expand(hash, params, *num_candidates, num_generated)
            }
            Want::Sample {
                params,
                num_prompt_tokens,
                history,
            } => {
                let hash = history.iter().fold(hash, |h, &t| mix(h, u64::from(t)));
                let num_generated = (position as usize + 1) - *num_prompt_tokens as usize;
                let token = self.draw(hash, params, u64::from(position), num_generated)?;
                let logprobs = params.logprobs.map(|top| self.logprobs(hash, token, top));
                Ok(RowOutput {
                    token,
                    logprobs,
                    candidates: Vec::new(),
                })
            }
        }
    }

    /// The token of a rank, from 0, in the distribution that `hash` stands for.
    fn ranked(&self, hash: u64, rank: u64) -> TokenId {
        let vocab_size = self.config.vocab_size as u64;
        ((hash % vocab_size + rank) % vocab_size) as TokenId
    }

    /// All tokens that may come next.
    fn best_first<'a>(
        &'a self,
        hash: u64,
        params: &'a SamplingParams,
        num_generated: usize,
    ) -> impl Iterator<Item = TokenId> + 'a {
        let banned = move |token: &TokenId| {
            let stops = num_generated < params.min_tokens && params.stop_token_ids.contains(token);
            let allowed = &params.allowed_token_ids;
            stops || (!allowed.is_empty() && !allowed.contains(token))
        };
        let ranks = 0..self.config.vocab_size as u64;
        ranks
            .map(move |rank| self.ranked(hash, rank))
            .filter(move |token| !banned(token))
    }

    fn expand(
        &self,
        hash: u64,
        params: &SamplingParams,
        num_candidates: usize,
        num_generated: usize,
    ) -> Result<RowOutput, RowError> {
        let best = self.best_first(hash, params, num_generated);
        let candidates: Vec<_> = best
            .take(num_candidates)
            .map(|token| Candidate {
                token,
                score: self.logprobs(hash, token, 0).logprob,
                logprobs: params.logprobs.map(|top| self.logprobs(hash, token, top)),
            })
            .collect();
        let best = candidates.first().ok_or(RowError::NothingAllowed)?;
        Ok(RowOutput {
            token: best.token,
            logprobs: None,
            candidates,
        })
    }

    fn draw(
        &self,
        hash: u64,
        params: &SamplingParams,
        position: u64,
        num_generated: usize,
    ) -> Result<TokenId, RowError> {
        let mut wanted = match params.temperature {
            0.0 => 0,
            _ => mix(mix(hash, params.seed), position).trailing_zeros(),
        };
        if params.top_k > 0 {
            wanted = wanted.min(params.top_k - 1);
        }
        let mut best = self.best_first(hash, params, num_generated);
        let first = best.next().ok_or(RowError::NothingAllowed)?;
        match wanted {
            0 => Ok(first),
            rank => Ok(best.nth(rank as usize - 1).unwrap_or(first)),
        }
    }

    fn logprobs(&self, hash: u64, token: TokenId, top: usize) -> TokenLogprobs {
        let logprob = |rank: u64| -((rank + 1) as f32) * std::f32::consts::LN_2;
        let vocab_size = self.config.vocab_size as u64;
        let rank = (u64::from(token) + vocab_size - hash % vocab_size) % vocab_size;
        TokenLogprobs {
            logprob: logprob(rank),
            rank: rank as u32 + 1,
            top: (0..vocab_size.min(top as u64))
                .map(|rank| (self.ranked(hash, rank), logprob(rank)))
                .collect(),
        }
    }
}

impl Executor for SimExecutor {
    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn submit(&mut self, batch: Batch) -> Result<(), ExecutorError> {
        if self.strike(&batch, true).is_some() {
            return Err(injected(batch.step));
        }
        self.submitted = Some(batch);
        Ok(())
    }

    fn wait(&mut self) -> Result<(Batch, StepOutput), ExecutorError> {
        let batch = self.submitted.take().expect("a step was submitted");
        let transfer_time = self.pass_time(&batch);
        self.transfer(&batch);
        let fault = self.strike(&batch, false);
        if matches!(fault, Some(SimFault::Wait | SimFault::Panic)) {
            for &slot in batch.slots.iter().step_by(2) {
                self.slots[slot as usize] = (0, 0);
            }
            match fault {
                Some(SimFault::Panic) => panic!("injected at step {}", batch.step),
                _ => return Err(injected(batch.step)),
            }
        }
        self.write(&batch);
        let mut rows = Vec::with_capacity(batch.outputs.len());
        let mut seq = 0;
        for (index, output) in batch.outputs.iter().enumerate() {
            while batch.row_offsets[seq + 1] <= output.row {
                seq += 1;
            }
            rows.push(match fault {
                Some(SimFault::Row(failing)) if failing == index => Err(RowError::NotANumber {
                    token: batch.tokens[output.row as usize],
                }),
                _ => self.output(&batch, index, seq),
            });
        }
        let step = batch.step;
        let output = StepOutput {
            step,
            transfer_time,
            rows,
        };
        Ok((batch, output))
    }
}

/// A device does the transfers of one list in any order; this one changes it from step to step.
fn shuffled(pairs: &[(u32, u32)], step: u64) -> impl Iterator<Item = &(u32, u32)> {
    let num_pairs = pairs.len();
    let first = mix(step, num_pairs as u64) as usize % num_pairs.max(1);
    let forward = step.is_multiple_of(2);
    (0..num_pairs).map(move |i| {
        let i = if forward { i } else { num_pairs - 1 - i };
        &pairs[(first + i) % num_pairs]
    })
}

fn injected(step: u64) -> ExecutorError {
    ExecutorError::Failed(format!("injected at step {step}").into())
}

/// One round of a 64-bit mixer (the finaliser of splitmix64).
fn mix(state: u64, value: u64) -> u64 {
    let mut z = (state ^ value).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
