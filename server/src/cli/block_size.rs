//! The value of `--block-size`.

use std::str::FromStr;

use pageloom_engine::BlockSizeInputs;
use pageloom_model_runner::{KvDtype, ModelConfig};

/// Means of a chat's lengths: those of the ShareGPT requests that the paper measures with (figure 11).
const CHAT: (f64, f64) = (161.31, 337.99);

/// Tokens a block, or how they are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum BlockSize {
    /// So many.
    Tokens(usize),
    /// As [`BlockSizeInputs`] recommends.
    Auto {
        /// Tokens of a prompt, on average.
        mean_prompt: f64,
        /// Tokens of an output, on average.
        mean_output: f64,
    },
}

impl BlockSize {
    /// Tokens a block of this model's cache.
    pub fn tokens(self, model: &ModelConfig, kv_dtype: KvDtype) -> usize {
        match self {
            BlockSize::Tokens(tokens) => tokens,
            BlockSize::Auto {
                mean_prompt,
                mean_output,
            } => BlockSizeInputs {
                head_dim: model.head_dim,
                kv_dtype,
                mean_prompt,
                mean_output,
            }
            .recommended(),
        }
    }
}

impl FromStr for BlockSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is neither a number of tokens, nor auto, nor auto:PROMPT,OUTPUT with mean lengths"
            )
        };
        if let Ok(tokens) = text.parse() {
            return Ok(BlockSize::Tokens(tokens));
        }
        let (mean_prompt, mean_output) = match text.strip_prefix("auto") {
            Some("") => CHAT,
            Some(lengths) => {
                let lengths = lengths.strip_prefix(':').ok_or_else(wrong)?;
                let (prompt, output) = lengths.split_once(',').ok_or_else(wrong)?;
                let length = |text: &str| {
                    let length = text.trim().parse().ok();
                    length
                        .filter(|n: &f64| n.is_finite() && *n >= 1.0)
                        .ok_or_else(wrong)
                };
                (length(prompt)?, length(output)?)
            }
            None => return Err(wrong()),
        };
        Ok(BlockSize::Auto {
            mean_prompt,
            mean_output,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_auto_are_read_and_others_refused() {
        let auto = |mean_prompt, mean_output| BlockSize::Auto {
            mean_prompt,
            mean_output,
        };
        for (text, expected) in [
            ("16", BlockSize::Tokens(16)),
            ("auto", auto(161.31, 337.99)),
            ("auto:2048,28", auto(2048.0, 28.0)),
        ] {
            assert_eq!(text.parse(), Ok(expected));
        }
        for text in [
            "",
            "-1",
            "auto:",
            "auto:1",
            "auto:0,1",
            "auto:1,NaN",
            "auto:1,inf",
            "automatic",
        ] {
            let error = text.parse::<BlockSize>().unwrap_err();
            assert!(error.contains("auto:PROMPT,OUTPUT"), "{error}");
        }
    }
}
