//! `config.json` and `generation_config.json` of a Hugging Face style folder.

use std::path::Path;

use serde_json::Value;

use super::LoadError;
use super::config::{Architecture, ModelConfig, RopeScaling};
use super::json::{Keys, parse_json, read_json};

/// Reads the folder's configuration.
pub(super) fn config(folder: &Path) -> Result<ModelConfig, LoadError> {
    let path = folder.join("config.json");
    let map = read_json(&path)?;
    let generation_path = folder.join("generation_config.json");
    let generation = if generation_path.exists() {
        Some(read_json(&generation_path)?)
    } else {
        None
    };
    let generation = generation.as_ref().map(|map| Keys {
        path: &generation_path,
        map,
        prefix: "",
    });
    from_json(
        &Keys {
            path: &path,
            map: &map,
            prefix: "",
        },
        generation.as_ref(),
    )
}

/// Reads a configuration that is in memory; `path` is what errors call it.
pub(super) fn config_from_slice(text: &[u8], path: &Path) -> Result<ModelConfig, LoadError> {
    let map = parse_json(text, path)?;
    let keys = Keys {
        path,
        map: &map,
        prefix: "",
    };
    from_json(&keys, None)
}

fn from_json(keys: &Keys<'_>, generation: Option<&Keys<'_>>) -> Result<ModelConfig, LoadError> {
    let architecture = architecture(keys)?;
    refuse_what_is_not_computed(keys, architecture)?;
    let size = |key| keys.required(key, keys.size(key)?);
    let hidden_size = size("hidden_size")?;
    let num_heads = size("num_attention_heads")?;
    let head_dim = match (keys.size("head_dim")?, architecture) {
        (Some(head_dim), _) => head_dim,
        (None, Architecture::Qwen3) => 128,
        (None, _) => hidden_size.checked_div(num_heads).unwrap_or(0),
    };
    // What transformers assumes where a configuration leaves the context out.
    let default_positions = match architecture {
        Architecture::Llama => 2048,
        Architecture::Mistral => 131_072,
        Architecture::Qwen2 | Architecture::Qwen3 => 32_768,
    };
    let positions = keys
        .size("max_position_embeddings")?
        .unwrap_or(default_positions);
    let window = sliding_window(keys, architecture)?;
    let (rope_theta, rope_scaling) = rope(keys, positions)?;
    let mut eos_token_ids = keys.token_ids("eos_token_id")?;
    if let Some(generation) = generation {
        let ids = generation.token_ids("eos_token_id")?;
        if !ids.is_empty() {
            eos_token_ids = ids;
        }
    }
    Ok(ModelConfig {
        architecture,
        vocab_size: size("vocab_size")?,
        hidden_size,
        intermediate_size: size("intermediate_size")?,
        num_layers: size("num_hidden_layers")?,
        num_heads,
        num_kv_heads: keys.size("num_key_value_heads")?.unwrap_or(num_heads),
        head_dim,
        rms_norm_eps: keys.float("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        rope_theta,
        rope_scaling,
        max_position_embeddings: window.map_or(positions, |window| window.min(positions)),
        tie_word_embeddings: keys.bool("tie_word_embeddings")?,
        qkv_bias: architecture == Architecture::Qwen2,
        qk_norm: architecture == Architecture::Qwen3,
        bos_token_id: keys.token_ids("bos_token_id")?.first().copied(),
        eos_token_ids,
    })
}

fn architecture(keys: &Keys<'_>) -> Result<Architecture, LoadError> {
    let listed = keys.typed("architectures", "a list of names", Value::as_array)?;
    let found = match listed.and_then(|list| list.first()) {
        Some(Value::String(name)) => name.as_str(),
        Some(other) => {
            return Err(keys.error("architectures", format!("expected names, found {other}")));
        }
        None => keys.str("model_type")?.unwrap_or("(none)"),
    };
    Architecture::from_hf(found).ok_or_else(|| LoadError::UnknownArchitecture {
        path: keys.path.to_owned(),
        found: found.to_owned(),
    })
}

fn refuse_what_is_not_computed(
    keys: &Keys<'_>,
    architecture: Architecture,
) -> Result<(), LoadError> {
    match keys.str("hidden_act")? {
        None | Some("silu" | "swish") => {}
        Some(other) => {
            return Err(keys.error("hidden_act", format!("`{other}`, only silu is supported")));
        }
    }
    if keys.get("quantization_config").is_some() {
        let reason = "quantised safetensors are not supported; use a GGUF file or F32, F16, BF16";
        return Err(keys.error("quantization_config", reason));
    }
    // Qwen2 has its biases whatever this key says; in the others it means the output projection too.
    if architecture != Architecture::Qwen2 && keys.bool("attention_bias")? {
        return Err(keys.error(
            "attention_bias",
            "biases are not supported in this architecture",
        ));
    }
    if keys.bool("mlp_bias")? {
        return Err(keys.error(
            "mlp_bias",
            "biases in the feed-forward layer are not supported",
        ));
    }
    if let Some(factor) = keys.float("partial_rotary_factor")?
        && factor != 1.0
    {
        return Err(keys.error(
            "partial_rotary_factor",
            format!("{factor}, only 1 is supported"),
        ));
    }
    Ok(())
}

/// The window of the model's attention, `None` where it attends to everything.
fn sliding_window(keys: &Keys<'_>, architecture: Architecture) -> Result<Option<usize>, LoadError> {
    let mut sliding = architecture == Architecture::Mistral || keys.bool("use_sliding_window")?;
    if let Some(types) = keys.typed("layer_types", "a list", Value::as_array)? {
        // Where the layers are spelled out, they decide.
        sliding = false;
        for kind in types {
            match kind.as_str() {
                Some("full_attention") => {}
                Some("sliding_attention") => sliding = true,
                _ => return Err(keys.error("layer_types", format!("{kind} is not supported"))),
            }
        }
    }
    let window = keys.size("sliding_window")?;
    if sliding && window.is_none() && architecture != Architecture::Mistral {
        return Err(keys.error("sliding_window", "the key is missing but layers use it"));
    }
    Ok(window.filter(|_| sliding))
}

/// Base and scaling of the rotary frequencies, from `rope_parameters` (transformers 5) or from
/// `rope_theta` and `rope_scaling`.
fn rope(keys: &Keys<'_>, positions: usize) -> Result<(f64, Option<RopeScaling>), LoadError> {
    let (name, prefix) = if keys.get("rope_parameters").is_some() {
        ("rope_parameters", "rope_parameters.")
    } else {
        ("rope_scaling", "rope_scaling.")
    };
    let theta = keys.float("rope_theta")?;
    let Some(map) = keys.object(name)? else {
        return Ok((theta.unwrap_or(10000.0), None));
    };
    let rope = Keys {
        path: keys.path,
        map,
        prefix,
    };
    if map.values().any(Value::is_object) {
        return Err(keys.error(
            name,
            "different parameters for kinds of layers are not supported",
        ));
    }
    let theta = rope.float("rope_theta")?.or(theta).unwrap_or(10000.0);
    if let Some(factor) = rope.float("partial_rotary_factor")?
        && factor != 1.0
    {
        return Err(rope.error(
            "partial_rotary_factor",
            format!("{factor}, only 1 is supported"),
        ));
    }
    let float = |key| rope.required(key, rope.float(key)?);
    let kind = match rope.str("rope_type")? {
        Some(kind) => Some(kind),
        None => rope.str("type")?,
    };
    let scaling = match kind {
        None | Some("default") => None,
        Some("linear") => Some(RopeScaling::Linear {
            factor: float("factor")?,
        }),
        Some("llama3") => Some(RopeScaling::Llama3 {
            factor: float("factor")?,
            low_freq_factor: float("low_freq_factor")?,
            high_freq_factor: float("high_freq_factor")?,
            original_max_position_embeddings: rope
                .size("original_max_position_embeddings")?
                .unwrap_or(positions),
        }),
        Some(other) => {
            let reason =
                format!("`{other}` is not supported; supported are default, linear, llama3");
            return Err(rope.error("rope_type", reason));
        }
    };
    Ok((theta, scaling))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn base() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_attention_heads": 4,
            "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 100,
            "rope_theta": 5000.0, "eos_token_id": [2, 3], "max_position_embeddings": 512,
        })
    }

    fn load(changes: Value) -> Result<ModelConfig, LoadError> {
        let mut map = base();
        let map = map.as_object_mut().unwrap();
        map.extend(changes.as_object().unwrap().clone());
        from_json(
            &Keys {
                path: Path::new("config.json"),
                map,
                prefix: "",
            },
            None,
        )
    }

    #[test]
    fn defaults_are_those_of_transformers() {
        let config = load(json!({})).unwrap();
        assert_eq!((config.head_dim, config.num_kv_heads), (16, 4));
        assert_eq!((config.rms_norm_eps, config.rope_theta), (1e-6, 5000.0));
        assert_eq!(config.eos_token_ids, [2, 3]);
        assert!(!config.tie_word_embeddings);
        let qwen3 = load(json!({"architectures": ["Qwen3ForCausalLM"]})).unwrap();
        assert_eq!(
            (qwen3.head_dim, qwen3.qk_norm, qwen3.qkv_bias),
            (128, true, false)
        );
    }

    #[test]
    fn a_sliding_window_in_use_caps_the_context_and_one_switched_off_does_not() {
        let context = |changes| load(changes).map(|config| config.max_position_embeddings);
        let mistral = json!({"architectures": ["MistralForCausalLM"], "sliding_window": 100});
        assert_eq!(context(mistral).unwrap(), 100);
        let null = json!({"architectures": ["MistralForCausalLM"], "sliding_window": null});
        assert_eq!(context(null).unwrap(), 512);
        let mut qwen = json!({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 100,
            "use_sliding_window": false});
        assert_eq!(context(qwen.clone()).unwrap(), 512);
        qwen["use_sliding_window"] = json!(true);
        assert_eq!(context(qwen.clone()).unwrap(), 100);
        qwen["sliding_window"] = json!(null);
        assert!(context(qwen).is_err());
    }

    #[test]
    fn both_spellings_of_rope_parameters_are_read() {
        let new = json!({"rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}});
        let config = load(new).unwrap();
        assert_eq!((config.rope_theta, config.rope_scaling), (7.0, None));
        let old = json!({"rope_scaling": {"type": "linear", "factor": 2}});
        let config = load(old).unwrap();
        assert_eq!(config.rope_theta, 5000.0);
        assert_eq!(
            config.rope_scaling,
            Some(RopeScaling::Linear { factor: 2.0 })
        );
    }

    #[test]
    fn what_cannot_be_computed_is_refused_by_name() {
        for (changes, named) in [
            (
                json!({"architectures": ["GemmaForCausalLM"]}),
                "Qwen3ForCausalLM",
            ),
            (json!({"architectures": [7]}), "architectures"),
            (json!({"architectures": null}), "(none)"),
            (json!({"hidden_size": -1}), "hidden_size"),
            (json!({"hidden_size": "64"}), "hidden_size"),
            (json!({"vocab_size": null}), "vocab_size"),
            (json!({"hidden_act": "gelu"}), "hidden_act"),
            (json!({"attention_bias": true}), "attention_bias"),
            (json!({"mlp_bias": true}), "mlp_bias"),
            (json!({"quantization_config": {}}), "quantization_config"),
            (json!({"rope_scaling": {"rope_type": "yarn"}}), "yarn"),
            (
                json!({"rope_scaling": {"rope_type": "llama3"}}),
                "rope_scaling.factor",
            ),
            (
                json!({"rope_parameters": {"full_attention": {}}}),
                "rope_parameters",
            ),
            (json!({"eos_token_id": 1e30}), "eos_token_id"),
            (json!({"layer_types": ["linear_attention"]}), "layer_types"),
        ] {
            let error = load(changes.clone())
                .expect_err(&changes.to_string())
                .to_string();
            assert!(
                error.contains("config.json") && error.contains(named),
                "{error}"
            );
        }
    }
}
