//! What a request asks of the sampler.

use crate::TokenId;

/// How the next token is drawn from the logits of one position.
///
/// The default is plain sampling from the model's distribution: temperature 1
/// and every filter off.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits before softmax; 0 means greedy.
    pub temperature: f32,
    /// Keeps the `top_k` most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the smallest set of most likely tokens whose probability reaches `top_p`, in (0, 1].
    pub top_p: f32,
    /// Drops tokens less likely than `min_p` times the most likely one, in [0, 1].
    pub min_p: f32,
    /// Subtracted from the logit of every token already generated, in [-2, 2].
    pub presence_penalty: f32,
    /// Subtracted once per earlier occurrence in the generated text, in [-2, 2].
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or output; 1 is off, > 0.
    pub repetition_penalty: f32,
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// When not empty, only these tokens may be drawn.
    pub allowed_token_ids: Vec<TokenId>,
    /// Seed of the counter-based generator; with the position it determines every draw.
    pub seed: u64,
    /// Tokens that end the sequence (end of text and the request's own); banned until `min_tokens`.
    pub stop_token_ids: Vec<TokenId>,
    /// Number of tokens to generate before a stop token may be drawn.
    pub min_tokens: usize,
    /// Return the log-probability of the drawn token and of this many most likely ones.
    pub logprobs: Option<usize>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            allowed_token_ids: Vec::new(),
            seed: 0,
            stop_token_ids: Vec::new(),
            min_tokens: 0,
            logprobs: None,
        }
    }
}

/// Most log-probabilities a request may ask for at a position.
pub const MAX_LOGPROBS: usize = 20;

/// A sampling parameter outside its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{field} must be {expected}, got {got}")]
pub struct InvalidParam {
    /// The parameter's name as a client spells it.
    pub field: &'static str,
    /// The range or shape that is accepted.
    pub expected: &'static str,
    /// What was given.
    pub got: String,
}

impl SamplingParams {
    /// Greedy decoding: the most likely token, ties to the lowest id.
    pub fn greedy() -> Self {
        SamplingParams {
            temperature: 0.0,
            ..Default::default()
        }
    }

    /// Whether the drawn token depends on the tokens before it other than through the model.
    pub fn needs_history(&self) -> bool {
        self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
            || self.repetition_penalty != 1.0
    }

    /// Checks every range; `vocab_size` bounds the token ids.
    ///
    /// # Errors
    /// [`InvalidParam`] names the first field that is out of range.
    pub fn validate(&self, vocab_size: usize) -> Result<(), InvalidParam> {
        fn check(
            ok: bool,
            field: &'static str,
            expected: &'static str,
            got: impl ToString,
        ) -> Result<(), InvalidParam> {
            if ok {
                Ok(())
            } else {
                Err(InvalidParam {
                    field,
                    expected,
                    got: got.to_string(),
                })
            }
        }
        let penalty = -2.0..=2.0;
        check(
            (0.0..=2.0).contains(&self.temperature),
            "temperature",
            "between 0 and 2",
            self.temperature,
        )?;
        check(
            self.top_p > 0.0 && self.top_p <= 1.0,
            "top_p",
            "above 0 and at most 1",
            self.top_p,
        )?;
        check(
            (0.0..=1.0).contains(&self.min_p),
            "min_p",
            "between 0 and 1",
            self.min_p,
        )?;
        check(
            penalty.contains(&self.presence_penalty),
            "presence_penalty",
            "between -2 and 2",
            self.presence_penalty,
        )?;
        check(
            penalty.contains(&self.frequency_penalty),
            "frequency_penalty",
            "between -2 and 2",
            self.frequency_penalty,
        )?;
        check(
            self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite(),
            "repetition_penalty",
            "a number above 0",
            self.repetition_penalty,
        )?;
        let in_vocab = |id: &TokenId| (*id as usize) < vocab_size;
        for (id, bias) in &self.logit_bias {
            check(
                in_vocab(id),
                "logit_bias",
                "keyed by token ids of the vocabulary",
                id,
            )?;
            check(
                (-100.0..=100.0).contains(bias),
                "logit_bias",
                "between -100 and 100",
                bias,
            )?;
        }
        for id in &self.allowed_token_ids {
            check(
                in_vocab(id),
                "allowed_token_ids",
                "token ids of the vocabulary",
                id,
            )?;
        }
        for id in &self.stop_token_ids {
            check(
                in_vocab(id),
                "stop_token_ids",
                "token ids of the vocabulary",
                id,
            )?;
        }
        if let Some(n) = self.logprobs {
            check(n <= MAX_LOGPROBS, "logprobs", "at most 20", n)?;
        }
        Ok(())
    }
}
