use std::path::{Path, PathBuf};

use super::config::ModelConfig;
use super::folder::{self, Safetensors};
use super::tensor::InterleavedHeads;
use super::{Gguf, LoadError, Tensor, gguf_model, hf_config};

/// A model on disk, memory-mapped: a GGUF file or a folder with safetensors.
///
/// Opening it checks the configuration and that every tensor the model needs is there with the
/// right shape and a type that can be read; after that, reading weights cannot fail.
#[derive(Debug)]
pub struct Checkpoint {
    config: ModelConfig,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Gguf(Gguf),
    Folder { path: PathBuf, tensors: Safetensors },
}

impl Checkpoint {
    /// Opens a GGUF file or a folder with `config.json` and safetensors.
    ///
    /// # Errors
    /// [`LoadError`] naming the file and what is wrong with it.
    pub fn open(path: &Path) -> Result<Checkpoint, LoadError> {
        let meta = std::fs::metadata(path).map_err(|source| LoadError::Io {
            path: path.to_owned(),
            source,
        })?;
        if meta.is_dir() {
            Checkpoint::open_folder(path)
        } else {
            Checkpoint::from_gguf(Gguf::open(path)?)
        }
    }

    fn open_folder(path: &Path) -> Result<Checkpoint, LoadError> {
        if !path.join("config.json").exists() {
            let reason = "no config.json in the folder".to_owned();
            return Err(LoadError::NotAModel {
                path: path.to_owned(),
                reason,
            });
        }
        let config = hf_config::config(path)?;
        let tensors = Safetensors::open(path)?;
        Checkpoint {
            config,
            source: Source::Folder {
                path: path.to_owned(),
                tensors,
            },
        }
        .checked()
    }

    /// Takes the model of a GGUF file that is open already.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_gguf(gguf: Gguf) -> Result<Checkpoint, LoadError> {
        let config = gguf_model::config(&gguf)?;
        Checkpoint {
            config,
            source: Source::Gguf(gguf),
        }
        .checked()
    }

    /// Takes the text of a `config.json` and the bytes of one safetensors file; `path` is what
    /// errors call both. Meant for tests and fuzzing.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    #[doc(hidden)]
    pub fn from_safetensors_bytes(
        config: &[u8],
        bytes: Vec<u8>,
        path: &Path,
    ) -> Result<Checkpoint, LoadError> {
        let config = hf_config::config_from_slice(config, path)?;
        let tensors = Safetensors::from_bytes(bytes, path)?;
        let path = path.to_owned();
        let source = Source::Folder { path, tensors };
        Checkpoint { config, source }.checked()
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The file, where the model is one GGUF file.
    pub fn gguf(&self) -> Option<&Gguf> {
        match &self.source {
            Source::Gguf(gguf) => Some(gguf),
            Source::Folder { .. } => None,
        }
    }

    /// The folder, where the model is one.
    pub fn folder(&self) -> Option<&Path> {
        match &self.source {
            Source::Gguf(_) => None,
            Source::Folder { path, .. } => Some(path),
        }
    }

    /// The file or folder the checkpoint was opened from.
    pub fn path(&self) -> &Path {
        match &self.source {
            Source::Gguf(gguf) => gguf.path(),
            Source::Folder { path, .. } => path,
        }
    }

    /// Bytes of the model's files together.
    pub fn file_bytes(&self) -> u64 {
        match &self.source {
            Source::Gguf(gguf) => gguf.bytes().len() as u64,
            Source::Folder { tensors, .. } => tensors.file_bytes(),
        }
    }

    /// Whether the checkpoint has a tensor of this (Hugging Face) name.
    pub fn has_tensor(&self, name: &str) -> bool {
        match &self.source {
            Source::Gguf(gguf) => {
                gguf_model::gguf_name(name).is_some_and(|name| gguf.tensor(&name).is_some())
            }
            Source::Folder { tensors, .. } => tensors.get(name).is_some(),
        }
    }

    /// A tensor by its Hugging Face name, as in `model.layers.0.self_attn.q_proj.weight`, for
    /// both formats. Vectors have one row.
    ///
    /// # Errors
    /// [`LoadError::TensorMissing`], [`LoadError::TensorType`], or [`LoadError::TensorShape`] for
    /// one of more than two dimensions.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, LoadError> {
        match &self.source {
            Source::Gguf(gguf) => self.gguf_tensor(gguf, name),
            Source::Folder { path, tensors } => folder_tensor(path, tensors, name),
        }
    }

    fn gguf_tensor<'a>(&self, gguf: &'a Gguf, name: &str) -> Result<Tensor<'a>, LoadError> {
        let gguf_name = gguf_model::gguf_name(name).unwrap_or_else(|| name.to_owned());
        let Some((stored_name, stored)) = gguf.tensor(&gguf_name) else {
            let path = gguf.path().to_owned();
            return Err(LoadError::TensorMissing {
                path,
                tensor: gguf_name,
            });
        };
        let head_dim = self.config.head_dim;
        let interleaved = gguf_model::is_interleaved(self.config.architecture, stored_name)
            .then_some(InterleavedHeads { head_dim });
        let heads_len = if stored.rows == 1 {
            stored.cols
        } else {
            stored.rows
        };
        if interleaved.is_some() && !heads_len.is_multiple_of(head_dim) {
            let reason = format!("{heads_len} is not a whole number of heads of {head_dim}");
            let path = gguf.path().to_owned();
            return Err(LoadError::Tensor {
                path,
                tensor: gguf_name,
                reason,
            });
        }
        Ok(Tensor {
            name: stored_name,
            dtype: stored.dtype,
            rows: stored.rows,
            cols: stored.cols,
            data: gguf.bytes().lend(stored.start..stored.start + stored.len),
            interleaved,
        })
    }

    /// Checks the configuration and that all tensors are there in the shapes it implies.
    fn checked(self) -> Result<Checkpoint, LoadError> {
        self.config.validate().map_err(|(field, reason)| {
            let path = match &self.source {
                Source::Gguf(gguf) => gguf.path().to_owned(),
                Source::Folder { path, .. } => path.join("config.json"),
            };
            LoadError::Config {
                path,
                key: field.to_owned(),
                reason,
            }
        })?;
        for_each_tensor(&self.config, |name, rows, cols| {
            let tensor = self.tensor(&name)?;
            if (tensor.rows, tensor.cols) == (rows, cols) {
                return Ok(());
            }
            Err(LoadError::TensorShape {
                path: self.path().to_owned(),
                tensor: tensor.name.to_owned(),
                expected: vec![rows, cols],
                found: vec![tensor.rows, tensor.cols],
            })
        })?;
        Ok(self)
    }
}

fn folder_tensor<'a>(
    folder: &Path,
    tensors: &'a Safetensors,
    name: &str,
) -> Result<Tensor<'a>, LoadError> {
    let Some((name, stored)) = tensors.get(name) else {
        return Err(LoadError::TensorMissing {
            path: folder.to_owned(),
            tensor: name.to_owned(),
        });
    };
    let path = || tensors.path_of(stored).to_owned();
    let Some(dtype) = folder::weight_type(stored.dtype) else {
        let found = stored.dtype.to_string();
        return Err(LoadError::TensorType {
            path: path(),
            tensor: name.to_owned(),
            found,
        });
    };
    let (rows, cols) = match stored.shape[..] {
        [cols] if cols > 0 => (1, cols),
        [rows, cols] if rows > 0 && cols > 0 => (rows, cols),
        _ => {
            let reason = format!("shape {:?} is not a vector or a matrix", stored.shape);
            return Err(LoadError::Tensor {
                path: path(),
                tensor: name.to_owned(),
                reason,
            });
        }
    };
    Ok(Tensor {
        name,
        dtype,
        rows,
        cols,
        data: tensors.data(stored),
        interleaved: None,
    })
}

/// Names and shapes of all tensors a model of this configuration has.
fn for_each_tensor(
    config: &ModelConfig,
    mut check: impl FnMut(String, usize, usize) -> Result<(), LoadError>,
) -> Result<(), LoadError> {
    let c = config;
    let (q_len, kv_len) = (c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim);
    check(
        "model.embed_tokens.weight".to_owned(),
        c.vocab_size,
        c.hidden_size,
    )?;
    check("model.norm.weight".to_owned(), 1, c.hidden_size)?;
    if !c.tie_word_embeddings {
        check("lm_head.weight".to_owned(), c.vocab_size, c.hidden_size)?;
    }
    let matrices = [
        ("self_attn.q_proj.weight", q_len, c.hidden_size),
        ("self_attn.k_proj.weight", kv_len, c.hidden_size),
        ("self_attn.v_proj.weight", kv_len, c.hidden_size),
        ("self_attn.o_proj.weight", c.hidden_size, q_len),
        ("mlp.gate_proj.weight", c.intermediate_size, c.hidden_size),
        ("mlp.up_proj.weight", c.intermediate_size, c.hidden_size),
        ("mlp.down_proj.weight", c.hidden_size, c.intermediate_size),
        ("input_layernorm.weight", 1, c.hidden_size),
        ("post_attention_layernorm.weight", 1, c.hidden_size),
    ];
    let biases = [
        ("self_attn.q_proj.bias", 1, q_len),
        ("self_attn.k_proj.bias", 1, kv_len),
        ("self_attn.v_proj.bias", 1, kv_len),
    ];
    let norms = [
        ("self_attn.q_norm.weight", 1, c.head_dim),
        ("self_attn.k_norm.weight", 1, c.head_dim),
    ];
    for layer in 0..c.num_layers {
        let biases = biases.iter().filter(|_| c.qkv_bias);
        let norms = norms.iter().filter(|_| c.qk_norm);
        for &(name, rows, cols) in matrices.iter().chain(biases).chain(norms) {
            check(format!("model.layers.{layer}.{name}"), rows, cols)?;
        }
    }
    Ok(())
}
