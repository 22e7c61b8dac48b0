//! An engine over the simulator, and what its requests came to.
#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod subjects;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, LazyLock},
    time::Duration,
};

use pageloom_engine::{
    Engine, EngineConfig, FinishReason, GeneratedToken, ModelExecutor, Request, RequestEvent,
    RequestId, SimConfig, SimExecutor, text::Tokenizer,
};
use pageloom_model_runner::{
    Checkpoint, CpuRunner, KvDtype, LoadOptions, Model, RunnerConfig, SamplingParams,
    TokenLogprobs, WeightDtype,
};

/// Tokens 0 to 2 are special, the last of them ends a text.
pub(crate) const VOCAB_SIZE: usize = 288;

/// A test model of the model runner's, of a few hundred kilobytes.
fn checkpoint() -> Checkpoint {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = folder.join("../model-runner/tests/models/smollm2");
    Checkpoint::open(&folder).expect("a test model")
}

/// Its tokeniser.
pub(crate) fn tokenizer() -> Arc<Tokenizer> {
    static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
        Arc::new(Tokenizer::from_checkpoint(&checkpoint()).expect("its tokenizer"))
    });
    TOKENIZER.clone()
}

/// Makes engines that differ in what computes their steps.
pub(crate) type MakeEngine = fn(EngineConfig) -> Engine;

/// The test model on two threads, with the caches that `config` says.
pub(crate) fn runner(config: &EngineConfig) -> CpuRunner {
    runner_of(&checkpoint(), config, KvDtype::F32)
}

fn runner_of(checkpoint: &Checkpoint, config: &EngineConfig, kv_dtype: KvDtype) -> CpuRunner {
    // An f32 cache goes with f32 arithmetic, as on the command line.
    let dtype = match kv_dtype {
        KvDtype::F32 => WeightDtype::Exact,
        _ => WeightDtype::Auto,
    };
    let options = LoadOptions {
        dtype,
        num_threads: 2,
        ..LoadOptions::default()
    };
    let model = Model::load(checkpoint, options).expect("it loads");
    let cache = RunnerConfig {
        block_size: config.block_size,
        num_blocks: config.num_blocks,
        num_host_blocks: config.num_host_blocks,
        kv_dtype,
    };
    CpuRunner::new(model, cache).expect("a cache")
}

/// Over the test model.
pub(crate) fn model_engine(config: EngineConfig) -> Engine {
    let executor = Box::new(ModelExecutor::new(runner(&config)));
    Engine::new(config, executor, tokenizer()).expect("valid")
}

/// Over the real model, as it is served by default.
pub(crate) fn real_engine(config: EngineConfig) -> Engine {
    real_engine_with(config, KvDtype::Bf16)
}

pub(crate) fn real_engine_with(config: EngineConfig, kv_dtype: KvDtype) -> Engine {
    let path = std::env::var("PAGELOOM_REAL_MODEL").expect("PAGELOOM_REAL_MODEL names the model");
    let checkpoint = Checkpoint::open(Path::new(&path)).expect("the real model");
    let tokenizer = Tokenizer::from_checkpoint(&checkpoint).expect("its tokenizer");
    let runner = runner_of(&checkpoint, &config, kv_dtype);
    let executor = Box::new(ModelExecutor::new(runner));
    Engine::new(config, executor, Arc::new(tokenizer)).expect("valid")
}

pub(crate) fn sim(config: &EngineConfig) -> SimConfig {
    SimConfig {
        block_size: config.block_size,
        num_blocks: config.num_blocks,
        num_host_blocks: config.num_host_blocks,
        vocab_size: VOCAB_SIZE,
        ..SimConfig::default()
    }
}

pub(crate) fn engine(config: EngineConfig) -> Engine {
    let sim = sim(&config);
    engine_with(config, sim)
}

pub(crate) fn engine_with(config: EngineConfig, sim: SimConfig) -> Engine {
    let executor = Box::new(SimExecutor::new(sim));
    Engine::new(config, executor, tokenizer()).expect("a valid configuration")
}

/// A prompt of `len` ordinary tokens; prompts of one family are prefixes of each other.
pub(crate) fn prompt(family: u32, len: usize) -> Vec<u32> {
    (0..len as u32)
        .map(|i| 3 + (family * 31 + i * 7 + i * i * family) % (VOCAB_SIZE as u32 - 3))
        .collect()
}

/// Greedy, never ends by itself.
pub(crate) fn greedy(prompt: Vec<u32>, max_tokens: usize) -> Request {
    Request {
        max_tokens: Some(max_tokens),
        sampling: SamplingParams::greedy(),
        ignore_eos: true,
        ..Request::new(prompt)
    }
}

/// All that became of one sequence.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) tokens: Vec<GeneratedToken>,
    pub(crate) text: String,
    pub(crate) finish: Option<FinishReason>,
    pub(crate) score: Option<f64>,
}

/// All that became of a request.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Transcript {
    pub(crate) prompt_logprobs: Option<Vec<Option<TokenLogprobs>>>,
    pub(crate) num_cached_tokens: usize,
    pub(crate) outcomes: BTreeMap<usize, Outcome>,
}

impl Transcript {
    pub(crate) fn take(&mut self, event: RequestEvent) {
        match event {
            RequestEvent::Prompt {
                num_cached_tokens,
                logprobs,
            } => {
                assert!(
                    self.prompt_logprobs.is_none(),
                    "the prompt's event comes once"
                );
                assert!(self.outcomes.is_empty(), "and first");
                self.prompt_logprobs = Some(logprobs);
                self.num_cached_tokens = num_cached_tokens;
            }
            RequestEvent::Output(delta) => {
                let outcome = self.outcomes.entry(delta.index).or_default();
                assert_eq!(outcome.finish, None, "nothing comes after the end");
                outcome.tokens.extend(delta.tokens);
                outcome.text.push_str(&delta.text);
                outcome.finish = delta.finish;
                outcome.score = delta.score;
            }
        }
    }

    pub(crate) fn is_finished(&self, n: usize) -> bool {
        self.outcomes.len() == n && self.outcomes.values().all(|o| o.finish.is_some())
    }

    pub(crate) fn ids(&self, index: usize) -> Vec<u32> {
        self.outcomes[&index]
            .tokens
            .iter()
            .map(|token| token.id)
            .collect()
    }
}

/// An engine with the transcripts of its requests.
pub(crate) struct Harness {
    pub(crate) engine: Engine,
    pub(crate) transcripts: BTreeMap<RequestId, Transcript>,
    now: Duration,
}

impl Harness {
    pub(crate) fn new(engine: Engine) -> Self {
        Harness {
            engine,
            transcripts: BTreeMap::new(),
            now: Duration::ZERO,
        }
    }

    pub(crate) fn add(&mut self, request: &Request) -> RequestId {
        let id = self.engine.add(request.clone(), self.now).expect("taken");
        self.transcripts.insert(id, Transcript::default());
        id
    }

    /// One step; false if there was nothing to do.
    pub(crate) fn step(&mut self) -> bool {
        let worked = self.engine.step(self.now).expect("never stalls");
        self.now += Duration::from_millis(10);
        self.collect();
        worked
    }

    pub(crate) fn abort(&mut self, id: RequestId) -> bool {
        let alive = self.engine.abort(id, self.now);
        self.collect();
        alive
    }

    pub(crate) fn collect(&mut self) {
        for (id, event) in self.engine.drain_events() {
            self.transcripts.get_mut(&id).expect("known").take(event);
        }
    }

    pub(crate) fn run(&mut self) {
        while self.step() {}
        self.assert_idle();
    }

    /// Idle means that nothing is referenced, and every block is accounted for.
    pub(crate) fn assert_idle(&self) {
        let stats = self.engine.stats();
        assert_eq!((stats.num_running, stats.num_waiting), (0, 0));
        assert_eq!(
            stats.num_referenced_blocks, stats.num_resident_blocks,
            "blocks leaked"
        );
        assert_eq!(
            stats.num_free_blocks + stats.num_cached_blocks + stats.num_resident_blocks,
            stats.num_blocks
        );
        assert!(!self.engine.has_work());
    }
}

/// The request in an engine of its own, with everything large.
pub(crate) fn alone_in(make: MakeEngine, request: &Request) -> Transcript {
    let config = EngineConfig {
        num_blocks: 512,
        ..EngineConfig::default()
    };
    let mut harness = Harness::new(make(config));
    let id = harness.add(request);
    harness.run();
    harness.transcripts.remove(&id).expect("kept")
}

/// The same over the simulator.
pub(crate) fn alone(request: &Request) -> Transcript {
    alone_in(engine, request)
}
