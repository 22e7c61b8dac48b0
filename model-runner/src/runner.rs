//! A loaded model and the memory it runs in.

use std::sync::{Mutex, PoisonError};
use std::thread::ThreadId;
use std::time::Instant;

use pageloom_paged_attn_kernels::cpu::pin_current_thread;
use pageloom_paged_attn_kernels::{CacheLayout, KvDtype};

use crate::batch::{Batch, RowOutput, StepOutput};
use crate::error::RunError;
use crate::models::{Activations, Llama};
use crate::ops::{
    Backend, CpuBackend, CpuRows, Operation, Profiled, Quantization, SharedProfile, WeightDtype,
    WeightOptions,
};
use crate::sampling::Sampler;
use crate::weights::{Checkpoint, LoadError, ModelConfig};

/// Rows whose logits are computed at once: bounds their memory to 64 times the vocabulary.
const LOGIT_ROWS: usize = 64;

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// How matrices are kept in memory.
    pub dtype: WeightDtype,
    /// Whether weights are quantised that the file does not have quantised already; only with
    /// [`WeightDtype::Auto`].
    pub quantization: Option<Quantization>,
    /// Threads that compute, the caller's included.
    pub num_threads: usize,
    /// CPUs that the threads are pinned to, in turn: the thread that runs the steps to the first,
    /// from its first step on. None: the system moves threads as it likes. Linux only.
    pub cpu_affinity: Vec<usize>,
}

impl Default for LoadOptions {
    /// Every core, not pinned, weights as [`WeightDtype::Auto`].
    fn default() -> Self {
        let num_threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        LoadOptions {
            dtype: WeightDtype::Auto,
            quantization: None,
            num_threads,
            cpu_affinity: Vec::new(),
        }
    }
}

/// A model with its weights in memory, ready to be given a KV cache.
pub struct Model {
    config: ModelConfig,
    backend: Profiled<CpuBackend>,
    decoder: Llama<Profiled<CpuBackend>>,
    /// Where the thread that runs the steps is to be.
    caller_cpu: Option<usize>,
}

impl Model {
    /// Reads and packs the weights of a checkpoint, on all threads.
    ///
    /// # Errors
    /// [`LoadError`] names the file and the tensor; [`LoadError::Affinity`] if the threads cannot
    /// be pinned as asked.
    pub fn load(checkpoint: &Checkpoint, options: LoadOptions) -> Result<Model, LoadError> {
        let config = checkpoint.config().clone();
        let frequencies = config.inv_freq();
        let backend = CpuBackend::new(
            options.num_threads,
            WeightOptions {
                dtype: options.dtype,
                quantization: options.quantization,
            },
            config.num_heads,
            frequencies,
        );
        if !options.cpu_affinity.is_empty() {
            let pool = backend.pool();
            pool.pin_workers(&options.cpu_affinity)
                .map_err(LoadError::Affinity)?;
        }
        let backend = Profiled::new(backend);
        let decoder = Llama::load(&backend, checkpoint)?;
        Ok(Model {
            config,
            backend,
            decoder,
            caller_cpu: options.cpu_affinity.first().copied(),
        })
    }

    /// Shape of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Memory the weights take, in bytes.
    pub fn weight_bytes(&self) -> u64 {
        self.decoder.weight_bytes()
    }

    /// Memory one KV block takes over all layers, in bytes.
    ///
    /// # Errors
    /// [`RunError::Kernel`] if the kernels do not support the block size or the model's heads.
    pub fn kv_bytes_per_block(
        &self,
        block_size: usize,
        kv_dtype: KvDtype,
    ) -> Result<u64, RunError> {
        let layout = self.cache_layout(&RunnerConfig {
            block_size,
            num_blocks: 1,
            num_host_blocks: 0,
            kv_dtype,
        });
        Ok(layout.bytes_per_block()? as u64)
    }

    fn cache_layout(&self, config: &RunnerConfig) -> CacheLayout {
        CacheLayout {
            num_layers: self.config.num_layers,
            num_blocks: config.num_blocks,
            block_size: config.block_size,
            num_kv_heads: self.config.num_kv_heads,
            head_dim: self.config.head_dim,
            dtype: config.kv_dtype,
        }
    }
}

/// Shape of the KV cache a runner works on, and of the tier behind it.
#[derive(Debug, Clone, Copy)]
pub struct RunnerConfig {
    /// Tokens a block.
    pub block_size: usize,
    /// Blocks that attention reads.
    pub num_blocks: usize,
    /// Blocks of the host tier, which others are swapped to; 0 for none.
    pub num_host_blocks: usize,
    /// Number format of keys and values.
    pub kv_dtype: KvDtype,
}

/// Runs steps on the CPU.
pub struct CpuRunner {
    model: Model,
    activations: Activations<Profiled<CpuBackend>>,
    logits: CpuRows,
    /// One a thread, each used by its own thread alone.
    samplers: Vec<Mutex<Sampler>>,
    cache: RunnerConfig,
    /// The thread that was pinned last.
    pinned: Option<ThreadId>,
}

impl CpuRunner {
    /// Gives a model its KV cache and host tier. Memory is taken as blocks are first written.
    ///
    /// # Errors
    /// [`RunError::Kernel`] if the layout is not supported or memory is short.
    pub fn new(mut model: Model, config: RunnerConfig) -> Result<CpuRunner, RunError> {
        let layout = model.cache_layout(&config);
        model
            .backend
            .inner
            .allocate_cache(layout, config.num_host_blocks)?;
        let num_threads = model.backend.inner.pool().num_threads();
        Ok(CpuRunner {
            activations: model.decoder.activations(&model.backend, &model.config),
            logits: model.backend.rows(model.config.vocab_size),
            samplers: (0..num_threads)
                .map(|_| Mutex::new(Sampler::new()))
                .collect(),
            cache: config,
            pinned: None,
            model,
        })
    }

    /// Shape of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.model.config
    }

    /// From now on the time of each operation is added to this profile.
    pub fn profile_into(&mut self, profile: SharedProfile) {
        self.model.backend.inner.pool().set_timed(true);
        self.model.backend.profile = Some(profile);
    }

    /// Whether [`run`](Self::run) can do the batch's transfers.
    ///
    /// # Errors
    /// Those of [`Batch::check_transfers`].
    pub fn check_transfers(&self, batch: &Batch) -> Result<(), RunError> {
        batch.check_transfers(self.cache.num_blocks, self.cache.num_host_blocks)
    }

    /// Computes one step: transfers, forward pass, logits, sampling.
    ///
    /// `out` is overwritten. A row whose logits are not numbers fails alone, in `out`.
    ///
    /// # Errors
    /// [`RunError`] if the batch contradicts itself, the model or the cache. With the errors of
    /// [`check_transfers`](Self::check_transfers) nothing was done. With any other all transfers
    /// were; the caches of the batch's own sequences are unspecified then, and those of other
    /// sequences are intact.
    pub fn run(&mut self, batch: &Batch, out: &mut StepOutput) -> Result<(), RunError> {
        out.step = batch.step;
        out.rows.clear();
        self.check_transfers(batch)?;
        let pinned = self.pin_caller();
        let Model {
            backend, decoder, ..
        } = &mut self.model;
        let profile = backend.profile.clone();
        let busy = backend.inner.pool().busy();
        // Before anything can fail: what they move may belong to others.
        let began = Instant::now();
        backend.transfer(batch)?;
        out.transfer_time = began.elapsed();
        pinned?;
        batch.check(self.cache.block_size)?;
        decoder.forward(backend, batch, &mut self.activations)?;
        for wanted in batch.outputs.chunks(LOGIT_ROWS) {
            let rows = wanted.iter().map(|output| output.row);
            decoder.logits(backend, &mut self.activations, rows, &mut self.logits)?;
            let first = out.rows.len();
            out.rows
                .resize(first + wanted.len(), Ok(RowOutput::default()));
            let (logits, samplers) = (&self.logits, &self.samplers);
            let began = profile.as_ref().map(|_| Instant::now());
            backend
                .inner
                .pool()
                .for_each_mut(&mut out.rows[first..], |worker, i, result| {
                    let output = &wanted[i];
                    let logits = &logits.data[i * logits.width..(i + 1) * logits.width];
                    let position = batch.positions[output.row as usize];
                    // Nobody else wants this lock: a worker runs one task at a time.
                    let mut sampler = samplers[worker]
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner);
                    *result = sampler.output(logits, position, &output.want);
                });
            if let (Some(profile), Some(began)) = (&profile, began) {
                profile.lock().add(Operation::Sampling, began.elapsed());
            }
        }
        if let Some(profile) = profile {
            let mut profile = profile.lock();
            profile.num_steps += 1;
            profile.run_time += began.elapsed();
            let pool = backend.inner.pool();
            profile.busy_time += pool.busy().saturating_sub(busy);
            profile.num_threads = pool.num_threads();
        }
        Ok(())
    }

    /// Pins the calling thread, if that is asked for and was not done yet.
    ///
    /// Not before a step: who loads a model is often not who runs it, and what threads the former
    /// starts would be bound to the same CPU.
    fn pin_caller(&mut self) -> Result<(), RunError> {
        let Some(cpu) = self.model.caller_cpu else {
            return Ok(());
        };
        let caller = std::thread::current().id();
        if self.pinned != Some(caller) {
            pin_current_thread(cpu)?;
            self.pinned = Some(caller);
        }
        Ok(())
    }
}
