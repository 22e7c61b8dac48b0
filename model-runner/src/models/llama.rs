//! The LLaMA family: LLaMA 1 to 3, SmolLM2, Mistral, Qwen2 and Qwen3.
//!
//! ```text
//! x = embed(tokens)
//! each layer:  x += o(attend(rope(qkv(norm(x)))))      Qwen2: qkv has biases
//!              x += down(silu(gate(h)) * up(h)), h = norm(x)    Qwen3: q and k heads are normed
//! logits = output(norm(x))                             tied models: output is the embedding
//! ```
//!
//! Source: Touvron et al. 2023; Jiang et al. 2023 (Mistral); Yang et al. 2024 (Qwen2), 2025 (Qwen3).

use crate::batch::Batch;
use crate::error::RunError;
use crate::ops::{Backend, Linear, LinearOf, QkvLayout};
use crate::weights::{Checkpoint, LoadError, ModelConfig, Tensor};

/// A decoder of the LLaMA family with its weights.
pub struct Llama<B: Backend> {
    qkv: QkvLayout,
    intermediate_size: usize,
    eps: f32,
    embedding: Linear<B>,
    layers: Vec<Layer<B>>,
    final_norm: B::Vector,
    /// `None`: tied to the embedding.
    output: Option<Linear<B>>,
}

struct Layer<B: Backend> {
    attention_norm: B::Vector,
    qkv: Linear<B>,
    /// Norms of query and key heads.
    qk_norms: Option<(B::Vector, B::Vector)>,
    o: B::Matrix,
    mlp_norm: B::Vector,
    gate_up: B::Matrix,
    down: B::Matrix,
}

/// Activations of a step, kept from step to step.
pub struct Activations<B: Backend> {
    /// The residual stream.
    x: B::Rows,
    /// What a sub-layer reads: the normed stream.
    h: B::Rows,
    qkv: B::Rows,
    attended: B::Rows,
    gated: B::Rows,
    /// The stream's rows that logits are computed of, and their norm.
    last: B::Rows,
    last_normed: B::Rows,
}

impl<B: Backend> Llama<B> {
    /// Loads the weights.
    ///
    /// # Errors
    /// [`LoadError`] names the tensor that is missing, malformed or of another shape than the
    /// configuration says.
    pub fn load(backend: &B, checkpoint: &Checkpoint) -> Result<Self, LoadError> {
        let config = checkpoint.config();
        let vector = |name: &str| backend.load_vector(&[checkpoint.tensor(name)?]);
        let matrix = |name: &str| backend.load_matrix(&[checkpoint.tensor(name)?]);
        let plain = |weight| LinearOf { weight, bias: None };
        Ok(Llama {
            qkv: QkvLayout {
                num_heads: config.num_heads,
                num_kv_heads: config.num_kv_heads,
                head_dim: config.head_dim,
            },
            intermediate_size: config.intermediate_size,
            eps: config.rms_norm_eps,
            embedding: plain(matrix("model.embed_tokens.weight")?),
            layers: (0..config.num_layers)
                .map(|i| Layer::load(backend, checkpoint, i))
                .collect::<Result<_, _>>()?,
            final_norm: vector("model.norm.weight")?,
            output: match config.tie_word_embeddings {
                true => None,
                false => Some(plain(matrix("lm_head.weight")?)),
            },
        })
    }

    /// Memory the weights take, in bytes.
    pub fn weight_bytes(&self) -> u64 {
        let layers = self
            .layers
            .iter()
            .flat_map(|layer| [&layer.qkv.weight, &layer.o, &layer.gate_up, &layer.down]);
        let output = self.output.iter().map(|output| &output.weight);
        layers
            .chain([&self.embedding.weight])
            .chain(output)
            .map(B::matrix_bytes)
            .sum()
    }

    /// Buffers for [`forward`](Self::forward).
    pub fn activations(&self, backend: &B, config: &ModelConfig) -> Activations<B> {
        let hidden = || backend.rows(config.hidden_size);
        Activations {
            x: hidden(),
            h: hidden(),
            qkv: backend.rows(self.qkv.width()),
            attended: backend.rows(self.qkv.num_heads * self.qkv.head_dim),
            gated: backend.rows(self.intermediate_size),
            last: hidden(),
            last_normed: hidden(),
        }
    }

    /// Runs the step's tokens through all layers; the result stays in `a`. Its transfers were done
    /// before.
    ///
    /// # Errors
    /// [`RunError`] if the batch contradicts itself, the model or the cache.
    pub fn forward(
        &self,
        b: &mut B,
        batch: &Batch,
        a: &mut Activations<B>,
    ) -> Result<(), RunError> {
        let Activations {
            x,
            h,
            qkv,
            attended,
            gated,
            ..
        } = a;
        for rows in [&mut *x, h, qkv, attended, gated] {
            b.set_num_rows(rows, batch.tokens.len());
        }
        b.begin(batch)?;
        b.embed(batch, &self.embedding.weight, x)?;
        for (i, layer) in self.layers.iter().enumerate() {
            b.rms_norm(x, &layer.attention_norm, self.eps, h)?;
            b.linear(h, &layer.qkv, qkv)?;
            if let Some((q_norm, k_norm)) = &layer.qk_norms {
                b.rms_norm_heads(qkv, self.qkv.q(), q_norm, self.eps)?;
                b.rms_norm_heads(qkv, self.qkv.k(), k_norm, self.eps)?;
            }
            b.rope(qkv, self.qkv)?;
            b.attend(batch, i, qkv, self.qkv, attended)?;
            b.linear_add(attended, &layer.o, x)?;

            b.rms_norm(x, &layer.mlp_norm, self.eps, h)?;
            b.linear_silu_mul(h, &layer.gate_up, gated)?;
            b.linear_add(gated, &layer.down, x)?;
        }
        Ok(())
    }

    /// Logits of some rows of the last [`forward`](Self::forward): `[rows.len(), vocab_size]`.
    ///
    /// # Errors
    /// [`RunError::Batch`] for a row that the step did not have.
    pub fn logits(
        &self,
        b: &mut B,
        a: &mut Activations<B>,
        rows: impl ExactSizeIterator<Item = u32>,
        logits: &mut B::Rows,
    ) -> Result<(), RunError> {
        for out in [&mut a.last, &mut a.last_normed, logits] {
            b.set_num_rows(out, rows.len());
        }
        b.gather(&a.x, rows, &mut a.last)?;
        b.rms_norm(&a.last, &self.final_norm, self.eps, &mut a.last_normed)?;
        b.linear(
            &a.last_normed,
            self.output.as_ref().unwrap_or(&self.embedding),
            logits,
        )
    }
}

impl<B: Backend> Layer<B> {
    fn load(backend: &B, checkpoint: &Checkpoint, layer: usize) -> Result<Self, LoadError> {
        let config = checkpoint.config();
        let tensor = |name: &str| checkpoint.tensor(&format!("model.layers.{layer}.{name}"));
        let vector = |name: &str| backend.load_vector(&[tensor(name)?]);
        let matrix = |name: &str| backend.load_matrix(&[tensor(name)?]);
        let projections = |suffix: &str| -> Result<[Tensor<'_>; 3], LoadError> {
            Ok([
                tensor(&format!("self_attn.q_proj.{suffix}"))?,
                tensor(&format!("self_attn.k_proj.{suffix}"))?,
                tensor(&format!("self_attn.v_proj.{suffix}"))?,
            ])
        };
        Ok(Layer {
            attention_norm: vector("input_layernorm.weight")?,
            qkv: LinearOf {
                weight: backend.load_matrix(&projections("weight")?)?,
                bias: match config.qkv_bias {
                    true => Some(backend.load_vector(&projections("bias")?)?),
                    false => None,
                },
            },
            qk_norms: match config.qk_norm {
                true => Some((
                    vector("self_attn.q_norm.weight")?,
                    vector("self_attn.k_norm.weight")?,
                )),
                false => None,
            },
            o: matrix("self_attn.o_proj.weight")?,
            mlp_norm: vector("post_attention_layernorm.weight")?,
            gate_up: backend.load_gated(
                tensor("mlp.gate_proj.weight")?,
                tensor("mlp.up_proj.weight")?,
            )?,
            down: matrix("mlp.down_proj.weight")?,
        })
    }
}
