//! Log-probabilities in the shapes of the two completion endpoints.

use std::collections::BTreeMap;

use pageloom_engine::GeneratedToken;
use pageloom_engine::text::Tokenizer;
use pageloom_model_runner::{TokenId, TokenLogprobs};
use serde::Serialize;

/// Stands for minus infinity, which JSON cannot write; the value that other servers send.
const LOGPROB_FLOOR: f32 = -9999.0;

/// Log-probabilities of a text completion: four lists with an entry per token.
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub(super) struct CompletionLogprobs {
    /// Where each token begins, in characters from the start of the choice's text.
    pub text_offset: Vec<usize>,
    /// `None` for the first token of an echoed prompt, which nothing predicts.
    pub token_logprobs: Vec<Option<f32>>,
    /// Text of each token on its own.
    pub tokens: Vec<String>,
    /// The most likely tokens and the token itself, by their text.
    pub top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
}

impl CompletionLogprobs {
    /// Adds a token whose text begins at `offset`; returns where the next begins.
    ///
    /// Of `logprobs.top` only the first `num_top` count: a prompt may have been scored with more.
    pub(super) fn push(
        &mut self,
        tokenizer: &Tokenizer,
        id: TokenId,
        logprobs: Option<&TokenLogprobs>,
        num_top: usize,
        offset: usize,
    ) -> usize {
        let text = tokenizer.token_text(id);
        let next = offset + text.chars().count();
        self.text_offset.push(offset);
        self.token_logprobs
            .push(logprobs.map(|entry| finite(entry.logprob)));
        self.top_logprobs.push(logprobs.map(|entry| {
            let mut top = BTreeMap::from([(text.clone(), finite(entry.logprob))]);
            for (id, logprob) in entry.top.iter().take(num_top) {
                // Tokens that are not whole characters can share a text: the likeliest stays.
                top.entry(tokenizer.token_text(*id))
                    .or_insert(finite(*logprob));
            }
            top
        }));
        self.tokens.push(text);
        next
    }
}

/// Log-probabilities of a chat completion.
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub(super) struct ChatLogprobs {
    /// One entry per token.
    pub content: Vec<ChatTokenLogprob>,
}

/// One token of [`ChatLogprobs`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct ChatTokenLogprob {
    /// The token itself.
    #[serde(flatten)]
    pub token: TokenLogprob,
    /// The most likely tokens, best first.
    pub top_logprobs: Vec<TokenLogprob>,
}

/// A token's text and log-probability.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct TokenLogprob {
    /// Text of the token on its own.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The text's bytes: a token need not be whole characters.
    pub bytes: Vec<u8>,
}

impl TokenLogprob {
    fn new(tokenizer: &Tokenizer, id: TokenId, logprob: f32) -> Self {
        TokenLogprob {
            token: tokenizer.token_text(id),
            logprob: finite(logprob),
            bytes: tokenizer.token_bytes(id).to_vec(),
        }
    }
}

impl ChatLogprobs {
    /// Adds generated tokens that carry log-probabilities.
    pub(super) fn extend(&mut self, tokenizer: &Tokenizer, tokens: &[GeneratedToken]) {
        for token in tokens {
            if let Some(logprobs) = &token.logprobs {
                self.content.push(ChatTokenLogprob {
                    token: TokenLogprob::new(tokenizer, token.id, logprobs.logprob),
                    top_logprobs: logprobs
                        .top
                        .iter()
                        .map(|&(id, logprob)| TokenLogprob::new(tokenizer, id, logprob))
                        .collect(),
                });
            }
        }
    }
}

/// One position of `prompt_logprobs`: by token id, the token and the most likely ones.
pub(super) type PromptLogprobs = Option<BTreeMap<TokenId, PromptLogprob>>;

/// A candidate at a position of the prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct PromptLogprob {
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// 1 for the most likely token.
    pub rank: u32,
    /// Its text.
    pub decoded_token: String,
}

/// `prompt_logprobs` of a response with `num_top` candidates a position.
pub(super) fn prompt_logprobs(
    tokenizer: &Tokenizer,
    prompt: &[TokenId],
    logprobs: &[Option<TokenLogprobs>],
    num_top: usize,
) -> Vec<PromptLogprobs> {
    let candidate = |id: TokenId, logprob: f32, rank: u32| PromptLogprob {
        logprob: finite(logprob),
        rank,
        decoded_token: tokenizer.token_text(id),
    };
    prompt
        .iter()
        .zip(logprobs)
        .map(|(&id, entry)| {
            let entry = entry.as_ref()?;
            let mut position: BTreeMap<_, _> = (1u32..)
                .zip(entry.top.iter().take(num_top))
                .map(|(rank, &(id, logprob))| (id, candidate(id, logprob, rank)))
                .collect();
            position.insert(id, candidate(id, entry.logprob, entry.rank));
            Some(position)
        })
        .collect()
}

fn finite(logprob: f32) -> f32 {
    // `max` also turns a not-a-number into the floor.
    logprob.max(LOGPROB_FLOOR)
}
