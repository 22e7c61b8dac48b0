//! From flags to an engine that is ready to run.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, bail};
use pageloom_engine::text::{ChatTemplate, Tokenizer};
use pageloom_engine::{Engine, EngineConfig, ModelExecutor};
use pageloom_model_runner::{
    Checkpoint, CpuRunner, KvDtype, LoadOptions, Model, RunnerConfig, SharedProfile, WeightDtype,
    check_cpus,
};

use crate::api::CacheInfo;
use crate::available_memory::available_bytes;
use crate::bytes::HumanBytes;
use crate::cli::{CacheOptions, CpuList, Device, ModelOptions, Preemption};
use crate::memory_plan::{MemoryPlan, MemoryRequest, check_swap_space};
use crate::model::{self, ModelSource};
use crate::shared_prefix;

/// Most tokens computed in a step on the CPU: larger steps' activations leave the second cache
/// level, and a prompt is then computed more slowly (benches/RESULTS.md).
const CPU_BATCHED_TOKENS: usize = 512;

/// What the commands set that is no shared flag.
#[derive(Debug, Clone, Default)]
pub struct EngineOptions {
    /// Share blocks between prompts with the same beginning.
    pub prefix_caching: bool,
    /// Most sequences that wait.
    pub max_num_queued_reqs: Option<usize>,
    /// Files with beginnings of prompts to be kept in the cache.
    pub shared_prefixes: Vec<PathBuf>,
    /// Where the runner adds the time of each operation.
    pub profile: Option<SharedProfile>,
}

/// An engine with what goes with it.
pub struct Launched {
    /// The engine.
    pub engine: Engine,
    /// The model's tokeniser.
    pub tokenizer: Arc<Tokenizer>,
    /// The chat template, the model's own or the one from the command line.
    pub template: Option<ChatTemplate>,
    /// What a request may ask for.
    pub config: EngineConfig,
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Name of the model by its source.
    pub name: String,
    /// Facts for the start-up message.
    pub summary: Summary,
}

/// What the start-up message says.
#[derive(Debug, Clone)]
pub struct Summary {
    name: String,
    shape: String,
    dtype: WeightDtype,
    kv_dtype: KvDtype,
    num_threads: usize,
    cpu_affinity: Option<CpuList>,
    weight_bytes: u64,
    block_size: usize,
    plan: MemoryPlan,
    num_resident_blocks: usize,
    load_time: Duration,
}

impl Summary {
    /// Memory that the weights take.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Facts for `vllm:cache_config_info`.
    pub fn cache_info(&self, enable_prefix_caching: bool) -> CacheInfo {
        CacheInfo {
            block_size: self.block_size,
            num_blocks: self.plan.num_blocks,
            cache_dtype: self.kv_dtype.name(),
            enable_prefix_caching,
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let plan = &self.plan;
        let dtype = match self.dtype {
            WeightDtype::Auto => "as in the file",
            WeightDtype::Exact => "as in the file (quantised: bf16), f32 arithmetic",
            WeightDtype::F32 => "f32",
            WeightDtype::Bf16 => "bf16",
        };
        writeln!(f, "model     {} ({})", self.name, self.shape)?;
        write!(f, "compute   CPU, {} threads", self.num_threads)?;
        if let Some(cpus) = &self.cpu_affinity {
            write!(f, " pinned to CPUs {cpus}")?;
        }
        let load_time = self.load_time.as_secs_f64();
        writeln!(f, ", weights {dtype}, loaded in {load_time:.2} s")?;
        write!(
            f,
            "memory    weights {}, KV cache {} {} = {} blocks of {} tokens",
            HumanBytes(self.weight_bytes),
            HumanBytes(plan.kv_cache_bytes),
            self.kv_dtype.name(),
            plan.num_blocks,
            self.block_size,
        )?;
        if plan.num_host_blocks > 0 {
            write!(
                f,
                ", swap space {} = {} blocks",
                HumanBytes(plan.swap_bytes),
                plan.num_host_blocks
            )?;
        }
        writeln!(f)?;
        if self.num_resident_blocks > 0 {
            writeln!(
                f,
                "          shared prefixes {} blocks, kept for good",
                self.num_resident_blocks
            )?;
        }
        let shortened = if plan.shortened {
            " (shortened to fit the KV cache)"
        } else {
            ""
        };
        write!(
            f,
            "context   {} tokens{shortened}, at most {} such requests at once",
            plan.max_model_len, plan.max_full_requests
        )
    }
}

/// Fetches and loads the model and sizes its KV cache.
///
/// # Errors
/// What is missing, wrong or too large, with its name.
pub fn launch(
    model: &ModelOptions,
    cache: &CacheOptions,
    options: &EngineOptions,
) -> anyhow::Result<Launched> {
    if model.device == Device::Cuda {
        bail!("--device cuda: this build has no CUDA back end yet; use --device cpu or auto");
    }
    if model.quantization.bits().is_some() && model.dtype.weights() != WeightDtype::Auto {
        bail!("--quantization: quantised weights are multiplied as --dtype auto does");
    }
    if cache.preemption_mode == Preemption::Swap && cache.swap_space == 0 {
        bail!("--preemption-mode swap: there is nowhere to swap to; give --swap-space");
    }
    // Loading can take long and much; what cannot be had is better said before.
    let load = load_options(model)?;
    check_swap_space(cache.swap_space, available_bytes())?;
    let mut config = engine_config(cache, options)?;
    let source = ModelSource::parse(&model.model)?;
    let path = model::fetch(&source)?;
    let start = Instant::now();
    let checkpoint = Checkpoint::open(&path)?;
    let tokenizer = Arc::new(Tokenizer::from_checkpoint(&checkpoint)?);
    let template = load_template(model, &checkpoint, &tokenizer)?;
    if !options.shared_prefixes.is_empty() && !options.prefix_caching {
        bail!("--shared-prefix: shared prefixes are kept in the prefix cache, which is off");
    }
    let shared_prefixes =
        shared_prefix::read_all(&options.shared_prefixes, &tokenizer, template.as_ref())?;
    let loaded = Model::load(&checkpoint, load.clone())?;
    let shape = loaded.config().clone();
    let kv_dtype = cache.kv_cache_dtype.next_to(model.dtype);
    config.shared_prefixes = shared_prefixes;
    config.block_size = cache.block_size.tokens(&shape, kv_dtype);
    let plan = MemoryRequest {
        available_bytes: available_bytes(),
        bytes_per_block: loaded.kv_bytes_per_block(config.block_size, kv_dtype)?,
        block_size: config.block_size,
        model_context: shape.max_position_embeddings,
        max_model_len: cache.max_model_len,
        max_num_seqs: config.max_num_seqs,
        num_resident_blocks: config.num_resident_blocks(),
        kv_cache_bytes: cache.kv_cache_memory_bytes,
        swap_bytes: cache.swap_space,
    }
    .plan()?;
    config.num_blocks = plan.num_blocks;
    config.num_host_blocks = plan.num_host_blocks;
    config.max_model_len = plan.max_model_len;
    let summary = Summary {
        name: source.served_name(),
        shape: format!(
            "{}, {} layers, hidden size {}, vocabulary {}",
            shape.architecture, shape.num_layers, shape.hidden_size, shape.vocab_size
        ),
        dtype: load.dtype,
        kv_dtype,
        num_threads: load.num_threads,
        cpu_affinity: model.cpu_affinity.clone(),
        weight_bytes: loaded.weight_bytes(),
        block_size: config.block_size,
        plan,
        num_resident_blocks: config.num_resident_blocks(),
        load_time: start.elapsed(),
    };
    let mut runner = CpuRunner::new(
        loaded,
        RunnerConfig {
            block_size: config.block_size,
            num_blocks: config.num_blocks,
            num_host_blocks: config.num_host_blocks,
            kv_dtype,
        },
    )?;
    if let Some(profile) = &options.profile {
        runner.profile_into(profile.clone());
    }
    let executor = Box::new(ModelExecutor::new(runner));
    let engine = Engine::new(config.clone(), executor, Arc::clone(&tokenizer))?;
    Ok(Launched {
        engine,
        tokenizer,
        template,
        config,
        vocab_size: shape.vocab_size,
        name: source.served_name(),
        summary,
    })
}

fn load_options(model: &ModelOptions) -> anyhow::Result<LoadOptions> {
    let default = LoadOptions::default();
    let cpus = model.cpu_affinity.as_ref().map(CpuList::cpus);
    if let Some(cpus) = cpus {
        check_cpus(cpus).context("--cpu-affinity")?;
    }
    let threads = model.threads.map(NonZeroUsize::get);
    Ok(LoadOptions {
        dtype: model.dtype.weights(),
        quantization: model.quantization.bits(),
        num_threads: threads
            .or(cpus.map(<[usize]>::len))
            .unwrap_or(default.num_threads),
        cpu_affinity: cpus.map_or_else(Vec::new, <[usize]>::to_vec),
    })
}

fn engine_config(cache: &CacheOptions, options: &EngineOptions) -> anyhow::Result<EngineConfig> {
    let default = EngineConfig::default();
    let max_num_seqs = cache.max_num_seqs.unwrap_or(default.max_num_seqs);
    Ok(EngineConfig {
        max_num_seqs,
        max_num_batched_tokens: cache
            .max_num_batched_tokens
            .unwrap_or(CPU_BATCHED_TOKENS.max(max_num_seqs)),
        long_prefill_token_threshold: cache.long_prefill_token_threshold,
        max_num_queued_requests: options
            .max_num_queued_reqs
            .unwrap_or(default.max_num_queued_requests),
        enable_prefix_caching: options.prefix_caching,
        scheduling_policy: cache.policy(),
        preemption_mode: cache.preemption_mode.into(),
        speculative: cache.speculation.config().map_err(Error::msg)?,
        hash_seed: getrandom::u64().context("the system has no random numbers to give")?,
        ..default
    })
}

fn load_template(
    model: &ModelOptions,
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
) -> anyhow::Result<Option<ChatTemplate>> {
    match &model.chat_template {
        None => Ok(ChatTemplate::from_checkpoint(checkpoint, tokenizer)?),
        Some(path) => ChatTemplate::from_file(path, tokenizer)
            .with_context(|| format!("--chat-template {}", path.display()))
            .map(Some),
    }
}
