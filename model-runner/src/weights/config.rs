use std::f64::consts::PI;
use std::fmt;

/// Family of models; decides tensor names and which of the optional parts exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Architecture {
    /// LLaMA 1 to 3 and the many models of the same shape (SmolLM2, TinyLlama, ...).
    /// Mistral's GGUF files say `llama` too.
    Llama,
    /// Mistral 7B and its kin.
    Mistral,
    /// Qwen2, Qwen2.5: biases on the query, key and value projections.
    Qwen2,
    /// Qwen3 (dense): RMS norms on each query and key head.
    Qwen3,
}

impl Architecture {
    /// The architecture a `config.json` names.
    pub(crate) fn from_hf(name: &str) -> Option<Architecture> {
        Some(match name {
            "LlamaForCausalLM" | "llama" => Architecture::Llama,
            "MistralForCausalLM" | "mistral" => Architecture::Mistral,
            "Qwen2ForCausalLM" | "qwen2" => Architecture::Qwen2,
            "Qwen3ForCausalLM" | "qwen3" => Architecture::Qwen3,
            _ => return None,
        })
    }

    /// The architecture a GGUF file's `general.architecture` names.
    pub(crate) fn from_gguf(name: &str) -> Option<Architecture> {
        Some(match name {
            "llama" => Architecture::Llama,
            "qwen2" => Architecture::Qwen2,
            "qwen3" => Architecture::Qwen3,
            _ => return None,
        })
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Architecture::Llama => "LlamaForCausalLM",
            Architecture::Mistral => "MistralForCausalLM",
            Architecture::Qwen2 => "Qwen2ForCausalLM",
            Architecture::Qwen3 => "Qwen3ForCausalLM",
        })
    }
}

/// How the rotary frequencies are stretched past the context a model was first trained for.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Every frequency is divided by `factor` (Chen et al. 2023, position interpolation).
    Linear {
        /// At least 1 in practice.
        factor: f64,
    },
    /// LLaMA 3.1's rule: long wavelengths are divided by `factor`, short ones kept, those
    /// between blended.
    Llama3 {
        /// Divisor of the long wavelengths.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Context the model was first trained for.
        original_max_position_embeddings: usize,
    },
    /// Frequency `i` is divided by the `i`th factor: GGUF's `rope_freqs.weight`,
    /// `[head_dim / 2]`.
    Factors(Vec<f32>),
}

/// What the model code needs to know about a model.
///
/// A config that comes from a [`super::Checkpoint`] has been through [`ModelConfig::validate`]
/// and its sizes match every tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Family.
    pub architecture: Architecture,
    /// Rows of the embedding; token ids are below it.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated feed-forward layer.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Elements of a head; even.
    pub head_dim: usize,
    /// Added to the mean square in RMS norms.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies are stretched.
    pub rope_scaling: Option<RopeScaling>,
    /// Longest context in tokens. Where the model has a sliding window this is at most the
    /// window: up to there, and only there, full attention computes the same thing.
    pub max_position_embeddings: usize,
    /// Whether the output projection is the embedding; there is no `lm_head.weight` then.
    pub tie_word_embeddings: bool,
    /// Whether the query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether each query and key head goes through an RMS norm before RoPE.
    pub qk_norm: bool,
    /// Token put in front of texts, if any.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
}

/// Bounds far above any model there is, and low enough that no product of two overflows.
const MAX_WIDTH: usize = 1 << 24;
const MAX_LAYERS: usize = 1 << 12;
const MAX_HEAD_DIM: usize = 1 << 12;
const MAX_POSITIONS: usize = 1 << 30;

impl ModelConfig {
    /// Checks everything the model code divides by or indexes with.
    ///
    /// # Errors
    /// The field and what is wrong with it.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        let sizes = [
            ("vocab_size", self.vocab_size, MAX_WIDTH),
            ("hidden_size", self.hidden_size, MAX_WIDTH),
            ("intermediate_size", self.intermediate_size, MAX_WIDTH),
            ("num_hidden_layers", self.num_layers, MAX_LAYERS),
            ("num_attention_heads", self.num_heads, MAX_WIDTH),
            ("num_key_value_heads", self.num_kv_heads, MAX_WIDTH),
            ("head_dim", self.head_dim, MAX_HEAD_DIM),
            (
                "max_position_embeddings",
                self.max_position_embeddings,
                MAX_POSITIONS,
            ),
        ];
        for (field, value, max) in sizes {
            if value == 0 || value > max {
                return Err((field, format!("{value} is not between 1 and {max}")));
            }
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            let (q, kv) = (self.num_heads, self.num_kv_heads);
            return Err((
                "num_key_value_heads",
                format!("{kv} does not divide {q} query heads"),
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(("head_dim", format!("{} is odd", self.head_dim)));
        }
        if self.num_heads * self.head_dim > MAX_WIDTH {
            return Err((
                "num_attention_heads",
                format!("{} heads of {}", self.num_heads, self.head_dim),
            ));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps > 0.0) {
            return Err((
                "rms_norm_eps",
                format!("{} is not positive", self.rms_norm_eps),
            ));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return Err(("rope_theta", format!("{} is not positive", self.rope_theta)));
        }
        for &id in self.eos_token_ids.iter().chain(&self.bos_token_id) {
            if id as usize >= self.vocab_size {
                let vocab_size = self.vocab_size;
                return Err((
                    "eos_token_id",
                    format!("{id} is not below vocab_size {vocab_size}"),
                ));
            }
        }
        self.validate_scaling()
    }

    fn validate_scaling(&self) -> Result<(), (&'static str, String)> {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let fine = match &self.rope_scaling {
            None => true,
            Some(RopeScaling::Linear { factor }) => positive(*factor),
            Some(RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            }) => {
                positive(*factor)
                    && positive(*low_freq_factor)
                    && high_freq_factor.is_finite()
                    && high_freq_factor > low_freq_factor
                    && (1..=MAX_POSITIONS).contains(original_max_position_embeddings)
            }
            Some(RopeScaling::Factors(factors)) => {
                factors.len() == self.head_dim / 2 && factors.iter().all(|x| positive((*x).into()))
            }
        };
        if fine {
            Ok(())
        } else {
            Err((
                "rope_scaling",
                format!("{:?} cannot be computed", self.rope_scaling),
            ))
        }
    }

    /// Rotary frequencies in radians per position, scaling applied, `[head_dim / 2]`.
    ///
    /// Source: Su et al. 2021; for LLaMA 3.1's scaling, Grattafiori et al. 2024.
    pub fn inv_freq(&self) -> Vec<f32> {
        let frequency = |i: usize| {
            let exponent = (2 * i) as f64 / self.head_dim as f64;
            let plain = self.rope_theta.powf(-exponent);
            match &self.rope_scaling {
                None => plain,
                Some(RopeScaling::Linear { factor }) => plain / factor,
                Some(RopeScaling::Factors(factors)) => plain / f64::from(factors[i]),
                Some(RopeScaling::Llama3 {
                    factor,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position_embeddings,
                }) => {
                    let wavelength = 2.0 * PI / plain;
                    let turns = *original_max_position_embeddings as f64 / wavelength;
                    let blend = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    let blend = blend.clamp(0.0, 1.0);
                    (1.0 - blend) * plain / factor + blend * plain
                }
            }
        };
        (0..self.head_dim / 2)
            .map(|i| frequency(i) as f32)
            .collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn tiny() -> ModelConfig {
        ModelConfig {
            architecture: Architecture::Llama,
            vocab_size: 32,
            hidden_size: 16,
            intermediate_size: 32,
            num_layers: 1,
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 4,
            rms_norm_eps: 1e-5,
            rope_theta: 10000.0,
            rope_scaling: None,
            max_position_embeddings: 64,
            tie_word_embeddings: true,
            qkv_bias: false,
            qk_norm: false,
            bos_token_id: None,
            eos_token_ids: vec![0],
        }
    }

    #[test]
    fn every_size_the_model_divides_by_is_checked() {
        assert_eq!(tiny().validate(), Ok(()));
        let broken: [fn(&mut ModelConfig); 12] = [
            |c| c.num_heads = 0,
            |c| c.num_kv_heads = 0,
            |c| c.num_kv_heads = 3,
            |c| c.head_dim = 5,
            |c| c.hidden_size = usize::MAX,
            |c| c.num_layers = 1 << 40,
            |c| c.rms_norm_eps = f32::NAN,
            |c| c.rope_theta = f64::INFINITY,
            |c| c.eos_token_ids = vec![32],
            |c| c.rope_scaling = Some(RopeScaling::Linear { factor: 0.0 }),
            |c| c.rope_scaling = Some(RopeScaling::Factors(vec![1.0])),
            |c| c.max_position_embeddings = 0,
        ];
        for (i, change) in broken.into_iter().enumerate() {
            let mut config = tiny();
            change(&mut config);
            assert!(config.validate().is_err(), "change {i}");
        }
    }

    #[test]
    fn llama3_scaling_keeps_short_wavelengths_and_divides_long_ones() {
        let mut config = tiny();
        (config.head_dim, config.rope_theta) = (128, 500_000.0);
        let plain = config.inv_freq();
        config.rope_scaling = Some(RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        });
        let scaled = config.inv_freq();
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[63], plain[63] / 8.0);
        assert!(
            scaled
                .iter()
                .zip(&plain)
                .all(|(s, p)| s <= p && *s >= p / 8.0)
        );
    }
}
