//! Random draws, and what the CPU makes of them.

use pageloom_model_runner::sampling::{DrawContext, Sampler};
use pageloom_model_runner::{RowError, SamplingParams, TokenId, TokenLogprobs};
use pageloom_paged_attn_kernels::cuda::sample::SampleRow;

/// A fixed sequence for each seed: xorshift64*.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((self.next() >> 33) as usize) % n
    }

    /// In [0, 1).
    pub(crate) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// `off` half of the time.
    pub(crate) fn perhaps<T>(&mut self, off: T, on: impl FnOnce(&mut Self) -> T) -> T {
        if self.below(2) == 0 { off } else { on(self) }
    }

    pub(crate) fn token(&mut self, vocab_size: usize) -> TokenId {
        self.below(vocab_size) as TokenId
    }

    pub(crate) fn tokens(&mut self, most: usize, vocab_size: usize) -> Vec<TokenId> {
        let len = self.below(most + 1);
        (0..len).map(|_| self.token(vocab_size)).collect()
    }

    /// Rows of every kind: like a model's, of few distinct values, flat, peaked, huge.
    pub(crate) fn logits(&mut self, vocab_size: usize) -> Vec<f32> {
        let kind = self.below(6);
        let shift = self.unit() * 40.0 - 20.0;
        let one = |r: &mut Self| match kind {
            0 => r.unit().max(1e-9).ln() * -2.0 - 6.0,
            1 => (r.below(9) as f32 - 4.0) * 0.5,
            2 => r.unit() * 0.1 + shift,
            3 => r.unit() * 60.0 + shift,
            4 => (r.unit() - 0.5) * 3e38,
            _ => match r.below(4) {
                0 => f32::NEG_INFINITY,
                1 => -0.0,
                2 => 0.0,
                _ => (r.unit() + r.unit() + r.unit()) * 8.0 - 12.0,
            },
        };
        let mut row: Vec<f32> = (0..vocab_size).map(|_| one(self)).collect();
        // Some token must be possible.
        row[self.below(vocab_size)] = shift;
        row
    }

    pub(crate) fn params(&mut self, vocab_size: usize) -> SamplingParams {
        let temperature = match self.below(10) {
            0 => 0.0,
            1 => 1e-39,
            2..=4 => 1.0,
            _ => 0.05 + 1.9 * self.unit(),
        };
        SamplingParams {
            temperature,
            top_k: self.perhaps(0, |r| 1 + r.below(vocab_size + vocab_size / 4) as u32),
            top_p: self.perhaps(1.0, |r| match r.below(4) {
                0 => 1e-6,
                1 => 1.0 - 1e-6,
                _ => 1.0 - r.unit() * 0.999,
            }),
            min_p: self.perhaps(0.0, |r| r.unit().powi(1 + 6 * r.below(2) as i32)),
            presence_penalty: self.perhaps(0.0, |r| 4.0 * r.unit() - 2.0),
            frequency_penalty: self.perhaps(0.0, |r| 4.0 * r.unit() - 2.0),
            repetition_penalty: self.perhaps(1.0, |r| [0.1, 1.1, 3.0, 1e-38, 1e38][r.below(5)]),
            logit_bias: self.perhaps(Vec::new(), |r| {
                let tokens = r.tokens(6, vocab_size);
                let biased = |t| (t, r.unit() * 200.0 - 100.0);
                tokens.into_iter().map(biased).collect()
            }),
            allowed_token_ids: match self.below(4) {
                0 => self.tokens(vocab_size.min(40), vocab_size),
                _ => Vec::new(),
            },
            seed: self.next(),
            stop_token_ids: self.perhaps(Vec::new(), |r| r.tokens(3, vocab_size)),
            min_tokens: self.below(20),
            logprobs: self.perhaps(None, |r| Some(r.below(21))),
        }
    }
}

/// A draw: everything that both samplers are told.
pub(crate) struct Case {
    pub(crate) logits: Vec<f32>,
    pub(crate) params: SamplingParams,
    pub(crate) history: Vec<TokenId>,
    pub(crate) num_prompt_tokens: usize,
}

pub(crate) type Drawn = Result<(TokenId, Option<TokenLogprobs>), RowError>;

impl Case {
    pub(crate) fn random(random: &mut Random, vocab_size: usize) -> Self {
        let mut history = random.tokens(30, vocab_size);
        // An id outside of the vocabulary has no effect.
        history.push(vocab_size as TokenId + random.token(5));
        Self {
            logits: random.logits(vocab_size),
            params: random.params(vocab_size),
            num_prompt_tokens: random.below(history.len() + 1),
            history,
        }
    }

    pub(crate) fn plain(logits: Vec<f32>, params: SamplingParams) -> Self {
        Self {
            logits,
            params,
            history: Vec::new(),
            num_prompt_tokens: 0,
        }
    }

    pub(crate) fn context(&self) -> DrawContext<'_> {
        DrawContext {
            position: self.history.len() as u32,
            num_prompt_tokens: self.num_prompt_tokens as u32,
            history: &self.history,
        }
    }

    pub(crate) fn on_cpu(&self) -> Drawn {
        let drawn = Sampler::new().sample(&self.logits, &self.params, &self.context())?;
        Ok((drawn.token, drawn.logprobs))
    }

    pub(crate) fn row(&self, logits_row: usize) -> SampleRow<'_> {
        let p = &self.params;
        let bans_stops = self.context().num_generated() < p.min_tokens;
        SampleRow {
            logits_row,
            seed: p.seed,
            position: self.history.len() as u32,
            temperature: p.temperature,
            top_k: p.top_k,
            top_p: p.top_p,
            min_p: p.min_p,
            repetition_penalty: p.repetition_penalty,
            frequency_penalty: p.frequency_penalty,
            presence_penalty: p.presence_penalty,
            history: &self.history,
            num_prompt_tokens: self.num_prompt_tokens,
            allowed: &p.allowed_token_ids,
            banned: if bans_stops { &p.stop_token_ids } else { &[] },
            bias: &p.logit_bias,
        }
    }
}
