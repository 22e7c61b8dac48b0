//! The paper's models on the paper's servers (table 1).

use serde::Serialize;

use super::cost::{StepCost, swap_of_block};

/// A model of the paper, on the GPUs it ran on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum Model {
    /// One A100 of 40 GB; LLaMA-13B has the same shape.
    Opt13b,
    /// Four A100 of 40 GB.
    Opt66b,
    /// Eight A100 of 80 GB.
    Opt175b,
}

impl Model {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Model::Opt13b => "OPT-13B",
            Model::Opt66b => "OPT-66B",
            Model::Opt175b => "OPT-175B",
        }
    }

    /// Tokens that the memory left for keys and values holds: 12 GiB of 819,200 bytes a token,
    /// "9.7K" and 264 GiB of 4,718,592 bytes.
    pub(crate) fn num_slots(self) -> usize {
        match self {
            Model::Opt13b => 15_728,
            Model::Opt66b => 9_700,
            Model::Opt175b => 60_074,
        }
    }

    /// Seconds of the paper's traces: an hour, a quarter for the largest.
    pub(crate) fn trace_s(self) -> f64 {
        match self {
            Model::Opt175b => 900.0,
            _ => 3600.0,
        }
    }

    /// What its steps cost with blocks of this size; the [module](super::cost) says where from.
    pub(crate) fn cost(self, block_size: usize) -> StepCost {
        // Bytes that a GPU moves for a token between the tiers, over the 13B's 819,200.
        let (fixed, weights, token, context, copy, swapped) = match self {
            Model::Opt13b => (9.5, 16.7, 0.105, 0.000_75, 0.001_05, 1.0),
            // 132 GB, 2,359,296 bytes a token, on 4 * 1,555 GB/s.
            Model::Opt66b => (38.0, 21.2, 0.133, 0.000_54, 0.000_76, 0.72),
            // 346 GB, 4,718,592 bytes a token, on 8 * 2,039 GB/s.
            Model::Opt175b => (78.0, 21.2, 0.177, 0.000_41, 0.000_58, 0.72),
        };
        StepCost {
            fixed,
            weights,
            token,
            context,
            copy,
            seq: 0.12,
            swap: swap_of_block(block_size).map(|ms| ms * swapped),
        }
    }
}

/// What a system has to run on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine {
    pub(crate) model: Model,
    /// Tokens of the pool if a key or value is 16 bits.
    pub(crate) num_slots: usize,
    pub(crate) block_size: usize,
    /// Values of a head's key.
    pub(crate) head_dim: usize,
    /// Longest request.
    pub(crate) context_len: usize,
    /// Requests of a batch whose memory is set aside for the longest of them; by model and data.
    pub(crate) padded_batch: usize,
    /// Sequences of each request: with more than one, samples of its prompt, or beams.
    pub(crate) num_seqs: usize,
    /// They are beams; in a step of so many, one of them gives way to a fork of another.
    pub(crate) renewal: Option<f64>,
}

impl Machine {
    /// The paper's, with blocks of 16 tokens.
    pub(crate) fn paper(model: Model, padded_batch: usize) -> Self {
        Machine {
            model,
            num_slots: model.num_slots(),
            block_size: 16,
            head_dim: HEAD_DIM,
            context_len: CONTEXT_LEN,
            padded_batch,
            num_seqs: 1,
            renewal: None,
        }
    }

    /// The 13B's with a quarter of all lengths: context, pool and blocks. With requests of a quarter
    /// of their lengths what fits is the same.
    ///
    /// `head_dim`: that of the model in place of the paper's.
    pub(crate) fn quarter(head_dim: usize) -> Self {
        let paper = Self::paper(Model::Opt13b, 0);
        Machine {
            num_slots: paper.num_slots / SCALE,
            block_size: paper.block_size / SCALE,
            context_len: paper.context_len / SCALE,
            head_dim,
            ..paper
        }
    }

    pub(crate) fn cost(&self) -> StepCost {
        self.model.cost(self.block_size)
    }
}

/// What lengths are divided by for real engines on small machines.
pub(crate) const SCALE: usize = 4;
/// Values of a head's key in all of the paper's models.
const HEAD_DIM: usize = 128;
/// Longest request of the paper's models, tokens.
pub(crate) const CONTEXT_LEN: usize = 2048;
/// 20 GiB of 819,200 bytes a token, tokens: the artifact's swap space for each GPU.
pub(crate) const SWAP_SLOTS: usize = 26_214;
