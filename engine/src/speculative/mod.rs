//! Speculative decoding: guesses at the next tokens, computed together with the last one.
//!
//! ```text
//!  tokens  ... the cat sat on | the cat            a proposer: what may come next?
//!  drafts                            sat on the    found behind an earlier "the cat"
//!  step            rows  cat  sat  on  the         one pass over the weights for all of them
//!                         |    |    |   |
//!  drawn                 sat  on   a    -          each row draws with the generator of its place
//!                         =    =   no              two drafts are what was drawn: three tokens
//! ```
//!
//! A row's token is drawn as if there were no drafts: from the logits after the tokens before it,
//! by the counter-based generator of (seed, position). A draft is kept if it is that token. So the
//! output is the same, bit for bit, greedy or sampled, whatever a proposer proposes. For a sampled
//! token this is rejection sampling of a draft that is certain (Leviathan et al. 2023, section 2.3,
//! with all of the draft's probability on one token): it is accepted with the probability `p` that
//! the model gives it, and otherwise what is drawn has the distribution of the others.
//!
//! How many drafts are computed follows what became of the last ones: see [`DraftLimit`].
//!
//! Another proposer, as a small model, is another implementation of [`Proposer`] beside [`Ngram`].

mod limit;
mod ngram;

pub(crate) use limit::DraftLimit;
pub use ngram::Ngram;
use pageloom_model_runner::TokenId;

use crate::EngineError;

/// Most drafts of a sequence in a step.
pub const MAX_SPECULATIVE_TOKENS: usize = 32;
/// Most tokens that are looked for earlier in a sequence.
pub const MAX_PROMPT_LOOKUP: usize = 32;

/// Guesses how sequences go on. Wrong guesses cost time and change nothing else.
pub trait Proposer {
    /// Appends to `drafts`, which is empty, what may follow `tokens`: prompt and output so far.
    ///
    /// Called before each step for each sequence that is being decoded.
    fn propose(&mut self, tokens: &[TokenId], drafts: &mut Vec<TokenId>);
}

/// Speculation by n-grams: what followed the last tokens where they occurred before in the
/// sequence, prompt or output, may follow them again ("prompt lookup").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NgramConfig {
    /// Most drafts a step computes for a sequence, 1 to [`MAX_SPECULATIVE_TOKENS`]. Fewer while
    /// drafts turn out wrong.
    pub num_speculative_tokens: usize,
    /// Fewest last tokens that must have occurred before; at least 1.
    pub prompt_lookup_min: usize,
    /// Most last tokens that are compared; the earlier place that has most of them is taken. At
    /// most [`MAX_PROMPT_LOOKUP`].
    pub prompt_lookup_max: usize,
}

impl Default for NgramConfig {
    fn default() -> Self {
        NgramConfig {
            num_speculative_tokens: 8,
            prompt_lookup_min: 2,
            prompt_lookup_max: 6,
        }
    }
}

impl NgramConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// [`EngineError::Speculation`] names the field.
    pub fn validate(&self) -> Result<(), EngineError> {
        let &NgramConfig {
            num_speculative_tokens,
            prompt_lookup_min,
            prompt_lookup_max,
        } = self;
        for (field, value, least, most) in [
            (
                "num_speculative_tokens",
                num_speculative_tokens,
                1,
                MAX_SPECULATIVE_TOKENS,
            ),
            ("prompt_lookup_max", prompt_lookup_max, 1, MAX_PROMPT_LOOKUP),
            ("prompt_lookup_min", prompt_lookup_min, 1, prompt_lookup_max),
        ] {
            if !(least..=most).contains(&value) {
                return Err(EngineError::Speculation {
                    field,
                    value,
                    least,
                    most,
                });
            }
        }
        Ok(())
    }
}
