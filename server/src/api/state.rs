//! What all handlers share.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use pageloom_engine::AsyncEngine;
use pageloom_engine::text::{ChatMessage, ChatTemplate, RenderOptions, TextError, Tokenizer};
use pageloom_model_runner::TokenId;

use super::auth::ApiKeys;
use super::error::{ApiError, shorten};
use super::metrics::CacheInfo;
use super::params::Limits;

/// Prompts longer than this, in bytes, are tokenised off the threads that serve connections.
const INLINE_ENCODE_BYTES: usize = 16 << 10;

/// What all handlers share.
pub struct AppState {
    /// The engine.
    pub engine: AsyncEngine,
    /// The model's tokeniser.
    pub tokenizer: Arc<Tokenizer>,
    /// The model's chat template, if it has one.
    pub template: Option<Arc<ChatTemplate>>,
    /// What the model bounds.
    pub limits: Limits,
    /// Names the model is served under; the first one labels metrics and answers.
    pub names: Vec<String>,
    /// Seeds of requests that bring none.
    pub seeds: Seeds,
    /// Keys clients must present.
    pub api_keys: ApiKeys,
    /// Largest accepted body.
    pub max_body_bytes: usize,
    /// When the server started, seconds since 1970.
    pub created: u64,
    /// Constant facts for `vllm:cache_config_info`.
    pub cache_info: CacheInfo,
}

impl AppState {
    /// The name to answer with for the name a request gives.
    ///
    /// # Errors
    /// 404 if the model is another one.
    pub fn model_name(&self, asked: Option<&str>) -> Result<&str, ApiError> {
        match asked {
            None => Ok(&self.names[0]),
            Some(asked) => self
                .names
                .iter()
                .find(|name| *name == asked)
                .map(String::as_str)
                .ok_or_else(|| ApiError {
                    param: Some("model".to_owned()),
                    ..ApiError::not_found(format!(
                        "the model {:?} does not exist; this server has {}",
                        shorten(asked),
                        self.names.join(", ")
                    ))
                }),
        }
    }

    /// Tokenises a prompt.
    ///
    /// # Errors
    /// 400 naming `param` if the tokeniser refuses the text.
    pub async fn encode(
        &self,
        text: String,
        add_special: bool,
        param: &str,
    ) -> Result<Vec<TokenId>, ApiError> {
        let ids = if text.len() <= INLINE_ENCODE_BYTES {
            self.tokenizer.encode(&text, add_special)
        } else {
            let tokenizer = Arc::clone(&self.tokenizer);
            tokio::task::spawn_blocking(move || tokenizer.encode(&text, add_special))
                .await
                .map_err(|error| ApiError::internal(format!("the tokeniser failed: {error}")))?
        };
        ids.map_err(|error| text_error(param, &error))
    }

    /// The text of token ids.
    ///
    /// # Errors
    /// 400 if the tokeniser refuses them.
    pub fn decode(&self, ids: &[TokenId], skip_special: bool) -> Result<String, ApiError> {
        self.tokenizer
            .decode(ids, skip_special)
            .map_err(|error| text_error("tokens", &error))
    }

    /// The prompt of a conversation.
    ///
    /// # Errors
    /// 400 if the model has no template or the template refuses the conversation.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        options: &RenderOptions,
    ) -> Result<String, ApiError> {
        let template = self.template.as_ref().ok_or_else(|| {
            ApiError::invalid(
                "messages",
                "this model has no chat template; start the server with --chat-template FILE",
            )
        })?;
        template
            .render(messages, options)
            .map_err(|error| text_error("messages", &error))
    }

    /// An id for a response: the client's own part, or 128 random bits.
    pub fn response_id(&self, prefix: &str, own: Option<&str>) -> String {
        let mut id = format!("{prefix}-");
        match own {
            Some(own) => id.push_str(own),
            None => {
                // Writing to a string cannot fail.
                let _ = write!(
                    id,
                    "{:016x}{:016x}",
                    self.seeds.unique(),
                    self.seeds.unique()
                );
            }
        }
        id
    }

    /// Seconds since 1970.
    pub fn now_unix(&self) -> u64 {
        now_unix()
    }
}

/// Seconds since 1970; 0 on a clock that is before it.
pub fn now_unix() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn text_error(param: &str, error: &TextError) -> ApiError {
    ApiError::invalid(param, format!("{param}: {}", error))
}

/// Seeds for requests that bring none.
#[derive(Debug)]
pub struct Seeds {
    base: u64,
    secret: u64,
    count: AtomicU64,
}

impl Seeds {
    /// With a seed, the same requests in the same order draw the same tokens; without, they differ
    /// at every start.
    ///
    /// # Errors
    /// Fails if the system has no random numbers to give.
    pub fn new(seed: Option<u64>) -> Result<Self, getrandom::Error> {
        Ok(Seeds {
            base: match seed {
                Some(seed) => seed,
                None => getrandom::u64()?,
            },
            secret: getrandom::u64()?,
            count: AtomicU64::new(0),
        })
    }

    /// A seed for the next request.
    pub fn next(&self) -> u64 {
        mix(self.base, self.count.fetch_add(1, Ordering::Relaxed))
    }

    /// A number for an id, of no relation to the seeds.
    fn unique(&self) -> u64 {
        getrandom::u64()
            .unwrap_or_else(|_| mix(self.secret, self.count.fetch_add(1, Ordering::Relaxed)))
    }
}

/// One output of SplitMix64 (Steele, Lea and Flood 2014), at `index` of the sequence of `base`.
fn mix(base: u64, index: u64) -> u64 {
    let mut z = base.wrapping_add((index.wrapping_add(1)).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_repeat_only_when_asked_to() {
        let draw = |seed| Seeds::new(seed).unwrap().next();
        assert_eq!(draw(Some(1)), draw(Some(1)));
        assert_ne!(draw(Some(1)), draw(Some(2)));
        assert_ne!(draw(None), draw(None));
        // Reference value of SplitMix64 for seed 0.
        assert_eq!(mix(0, 0), 0xe220_a839_7b1d_cdaf);
    }
}
