//! What a GGUF file says about its model: configuration and tensor names.

use super::config::{Architecture, ModelConfig, RopeScaling};
use super::dequant::dequantise;
use super::{Gguf, LoadError};

/// GGUF's name of a tensor that callers ask for by Hugging Face's name.
///
/// ```text
/// model.layers.{i}.self_attn.q_proj.{weight,bias}   blk.{i}.attn_q.{weight,bias}
/// model.embed_tokens.weight                         token_embd.weight
/// ```
pub(super) fn gguf_name(hf_name: &str) -> Option<String> {
    let whole = match hf_name {
        "model.embed_tokens.weight" => Some("token_embd.weight"),
        "model.norm.weight" => Some("output_norm.weight"),
        "lm_head.weight" => Some("output.weight"),
        _ => None,
    };
    if let Some(name) = whole {
        return Some(name.to_owned());
    }
    let (layer, rest) = hf_name.strip_prefix("model.layers.")?.split_once('.')?;
    let (module, kind) = rest.rsplit_once('.')?;
    let module = match module {
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "post_attention_layernorm" => "ffn_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{layer}.{module}.{kind}"))
}

/// Whether the file stores this tensor's rows with rotary pairs side by side.
pub(super) fn is_interleaved(architecture: Architecture, gguf_name: &str) -> bool {
    architecture == Architecture::Llama
        && (gguf_name.contains(".attn_q.") || gguf_name.contains(".attn_k."))
}

/// Reads `general.architecture` and that architecture's keys.
pub(super) fn config(gguf: &Gguf) -> Result<ModelConfig, LoadError> {
    let name = gguf.str("general.architecture")?.unwrap_or("(none)");
    let architecture =
        Architecture::from_gguf(name).ok_or_else(|| LoadError::UnknownArchitecture {
            path: gguf.path().to_owned(),
            found: name.to_owned(),
        })?;
    let keys = Keys {
        gguf,
        architecture: name,
    };
    refuse_what_is_not_computed(&keys)?;

    let hidden_size = keys.required("embedding_length")?;
    let num_heads = keys.required("attention.head_count")?;
    let num_kv_heads = keys.size("attention.head_count_kv")?.unwrap_or(num_heads);
    let default_head_dim = hidden_size.checked_div(num_heads).unwrap_or(0);
    let head_dim = keys
        .size("attention.key_length")?
        .unwrap_or(default_head_dim);
    keys.expect_if_present("attention.value_length", head_dim)?;
    keys.expect_if_present("rope.dimension_count", head_dim)?;

    let embedding = keys.tensor("token_embd.weight")?;
    let context = keys.required("context_length")?;
    let window = keys
        .size("attention.sliding_window")?
        .filter(|window| *window > 0);
    let config = ModelConfig {
        architecture,
        vocab_size: embedding.rows,
        hidden_size,
        intermediate_size: keys.required("feed_forward_length")?,
        num_layers: keys.required("block_count")?,
        num_heads,
        num_kv_heads,
        head_dim,
        rms_norm_eps: keys
            .float("attention.layer_norm_rms_epsilon")?
            .unwrap_or(1e-5) as f32,
        rope_theta: keys.float("rope.freq_base")?.unwrap_or(10000.0),
        rope_scaling: rope_scaling(&keys, head_dim)?,
        max_position_embeddings: window.map_or(context, |window| window.min(context)),
        tie_word_embeddings: gguf.tensor("output.weight").is_none(),
        qkv_bias: architecture == Architecture::Qwen2 || gguf.tensor("blk.0.attn_q.bias").is_some(),
        qk_norm: architecture == Architecture::Qwen3,
        bos_token_id: token_id(gguf, "tokenizer.ggml.bos_token_id")?,
        eos_token_ids: eos_token_ids(gguf)?,
    };
    check_vocabulary(gguf, config.vocab_size)?;
    Ok(config)
}

/// The keys of one architecture: `llama.block_count` and so on.
struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
}

impl Keys<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn size(&self, key: &str) -> Result<Option<usize>, LoadError> {
        let key = self.key(key);
        let Some(value) = self.gguf.uint(&key)? else {
            return Ok(None);
        };
        match usize::try_from(value) {
            Ok(size) => Ok(Some(size)),
            Err(_) => Err(self
                .gguf
                .config_error(&key, format!("{value} is too large"))),
        }
    }

    fn required(&self, key: &str) -> Result<usize, LoadError> {
        let missing = || {
            self.gguf
                .config_error(&self.key(key), "the key is missing".to_owned())
        };
        self.size(key)?.ok_or_else(missing)
    }

    fn float(&self, key: &str) -> Result<Option<f64>, LoadError> {
        self.gguf.float(&self.key(key))
    }

    fn expect_if_present(&self, key: &str, expected: usize) -> Result<(), LoadError> {
        match self.size(key)? {
            Some(found) if found != expected => Err(self.gguf.config_error(
                &self.key(key),
                format!("{found} is not supported, only {expected}"),
            )),
            _ => Ok(()),
        }
    }

    fn tensor(&self, name: &str) -> Result<&super::gguf_tensor::GgufTensor, LoadError> {
        self.gguf
            .tensor(name)
            .map(|(_, tensor)| tensor)
            .ok_or_else(|| LoadError::TensorMissing {
                path: self.gguf.path().to_owned(),
                tensor: name.to_owned(),
            })
    }
}

fn refuse_what_is_not_computed(keys: &Keys<'_>) -> Result<(), LoadError> {
    let gguf = keys.gguf;
    if let Some(files @ 2..) = gguf.uint("split.count")? {
        let reason = format!("the model is split over {files} files; merge them into one");
        return Err(gguf.config_error("split.count", reason));
    }
    if let Some(experts @ 1..) = keys.size("expert_count")? {
        let reason = format!("{experts} experts: mixtures of experts are not supported");
        return Err(gguf.config_error(&keys.key("expert_count"), reason));
    }
    for name in [
        "blk.0.attn_output.bias",
        "blk.0.ffn_down.bias",
        "output.bias",
    ] {
        if gguf.tensor(name).is_some() {
            return Err(LoadError::Tensor {
                path: gguf.path().to_owned(),
                tensor: name.to_owned(),
                reason: "a bias here is not supported".to_owned(),
            });
        }
    }
    Ok(())
}

fn rope_scaling(keys: &Keys<'_>, head_dim: usize) -> Result<Option<RopeScaling>, LoadError> {
    let gguf = keys.gguf;
    let kind_key = keys.key("rope.scaling.type");
    let linear = match gguf.str(&kind_key)? {
        None | Some("none") => None,
        Some("linear") => match keys.float("rope.scaling.factor")? {
            Some(factor) => Some(RopeScaling::Linear { factor }),
            None => {
                let key = keys.key("rope.scaling.factor");
                return Err(gguf.config_error(&key, "the key is missing".to_owned()));
            }
        },
        Some(other) => {
            let reason = format!("`{other}` is not supported; supported are none, linear");
            return Err(gguf.config_error(&kind_key, reason));
        }
    };
    let Some((name, tensor)) = gguf.tensor("rope_freqs.weight") else {
        return Ok(linear);
    };
    if (tensor.rows, tensor.cols) != (1, head_dim / 2) {
        return Err(LoadError::TensorShape {
            path: gguf.path().to_owned(),
            tensor: name.to_owned(),
            expected: vec![head_dim / 2],
            found: vec![tensor.rows, tensor.cols],
        });
    }
    if linear.is_some() {
        let reason = "linear scaling and rope_freqs.weight together".to_owned();
        return Err(gguf.config_error(&kind_key, reason));
    }
    let mut factors = vec![0.0; tensor.cols];
    dequantise(
        tensor.dtype,
        &gguf.bytes()[tensor.start..][..tensor.len],
        &mut factors,
    );
    Ok(Some(RopeScaling::Factors(factors)))
}

fn token_id(gguf: &Gguf, key: &str) -> Result<Option<u32>, LoadError> {
    let Some(id) = gguf.uint(key)? else {
        return Ok(None);
    };
    let too_large = |_| gguf.config_error(key, format!("{id} is not a token id"));
    u32::try_from(id).map(Some).map_err(too_large)
}

/// The end of text, and the end of a turn where the file tells them apart.
fn eos_token_ids(gguf: &Gguf) -> Result<Vec<u32>, LoadError> {
    let mut ids = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
        if let Some(id) = token_id(gguf, key)?
            && !ids.contains(&id)
        {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// A vocabulary longer than the embedding would give tokens without a row; a shorter one is
/// padding.
fn check_vocabulary(gguf: &Gguf, vocab_size: usize) -> Result<(), LoadError> {
    let key = "tokenizer.ggml.tokens";
    match gguf.array(key)? {
        Some(tokens) if tokens.len() > vocab_size => Err(gguf.config_error(
            key,
            format!(
                "{} tokens, but the embedding has {vocab_size} rows",
                tokens.len()
            ),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_formats_correspond() {
        for (hf, gguf) in [
            (
                "model.layers.12.self_attn.q_proj.bias",
                "blk.12.attn_q.bias",
            ),
            (
                "model.layers.0.mlp.down_proj.weight",
                "blk.0.ffn_down.weight",
            ),
            (
                "model.layers.0.self_attn.k_norm.weight",
                "blk.0.attn_k_norm.weight",
            ),
            ("lm_head.weight", "output.weight"),
        ] {
            assert_eq!(gguf_name(hf).as_deref(), Some(gguf));
        }
        assert_eq!(gguf_name("model.layers.0.weight"), None);
        assert_eq!(gguf_name("visual.patch_embed.weight"), None);
    }
}
