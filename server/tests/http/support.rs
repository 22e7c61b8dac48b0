//! A server under test and the client side of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use pageloom::api::{ApiKeys, AppState, CacheInfo, Limits, Seeds, router};
use pageloom_engine::text::{ChatTemplate, Tokenizer};
use pageloom_engine::{AsyncEngine, Engine, EngineConfig, EngineStats, SimConfig, SimExecutor};
use pageloom_model_runner::Checkpoint;
use serde_json::Value;
use tower::ServiceExt;

/// Steps that take time, so that requests are still running when something happens to them.
pub(crate) fn slow_steps() -> SimConfig {
    SimConfig {
        step_time: Duration::from_millis(2),
        token_time: Duration::ZERO,
        sleep: true,
        ..SimConfig::default()
    }
}

/// What a test may want to be different.
pub(crate) struct Setup {
    pub(crate) engine: EngineConfig,
    pub(crate) sim: SimConfig,
    pub(crate) api_keys: Vec<String>,
    pub(crate) max_body_bytes: usize,
    pub(crate) template: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            engine: EngineConfig {
                num_blocks: 256,
                max_model_len: 512,
                max_num_seqs: 32,
                max_num_batched_tokens: 256,
                ..EngineConfig::default()
            },
            sim: SimConfig::default(),
            api_keys: Vec::new(),
            max_body_bytes: 1 << 20,
            template: true,
        }
    }
}

/// A model too small to be of use, with a tokeniser and a chat template.
pub(crate) fn tiny_model() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../model-runner/tests/models/smollm2")
}

/// The state of a server, and through it everything about it.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) app: Arc<AppState>,
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// The body as an answer that must be 200.
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text);
        self.json()
    }

    /// Status, field and message of an error in OpenAI's form.
    pub(crate) fn error(&self) -> (u16, Option<String>, String) {
        let json = self.json();
        let error = &json["error"];
        let code = self.status.as_u16();
        assert_eq!(error["code"], code, "{}", self.text);
        assert!(!error["type"].as_str().unwrap().is_empty());
        let message = error["message"].as_str().unwrap().to_owned();
        assert!(!message.is_empty() && message.len() < 2000, "{message}");
        let param = error["param"].as_str().map(str::to_owned);
        (code, param, message)
    }

    /// The chunks of a stream that must end as it should.
    pub(crate) fn chunks(&self) -> Vec<Value> {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text);
        let kind = self.headers["content-type"].to_str().unwrap();
        assert!(kind.starts_with("text/event-stream"), "{kind}");
        let mut events: Vec<&str> = self.text.split_terminator("\n\n").collect();
        assert_eq!(events.pop(), Some("data: [DONE]"), "{}", self.text);
        events
            .into_iter()
            .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
            .collect()
    }
}

impl Server {
    pub(crate) fn new() -> Self {
        Self::with(Setup::default())
    }

    pub(crate) fn with(setup: Setup) -> Self {
        let checkpoint = Checkpoint::open(&tiny_model()).unwrap();
        let tokenizer = Arc::new(Tokenizer::from_checkpoint(&checkpoint).unwrap());
        let template = ChatTemplate::from_checkpoint(&checkpoint, &tokenizer).unwrap();
        let vocab_size = tokenizer.vocab_size();
        let sim = SimConfig {
            block_size: setup.engine.block_size,
            num_blocks: setup.engine.num_blocks,
            num_host_blocks: setup.engine.num_host_blocks,
            vocab_size,
            ..setup.sim
        };
        let executor = Box::new(SimExecutor::new(sim));
        let engine = Engine::new(setup.engine.clone(), executor, Arc::clone(&tokenizer)).unwrap();
        let app = AppState {
            engine: AsyncEngine::spawn(engine),
            tokenizer,
            template: template.filter(|_| setup.template).map(Arc::new),
            limits: Limits {
                max_model_len: setup.engine.max_model_len,
                vocab_size,
                max_num_seqs: setup.engine.max_num_seqs,
            },
            names: vec!["tiny".to_owned(), "org/tiny".to_owned()],
            seeds: Seeds::new(Some(1)).unwrap(),
            api_keys: ApiKeys::new(&setup.api_keys),
            max_body_bytes: setup.max_body_bytes,
            created: 1,
            cache_info: CacheInfo {
                block_size: setup.engine.block_size,
                num_blocks: setup.engine.num_blocks,
                cache_dtype: "f32",
                enable_prefix_caching: setup.engine.enable_prefix_caching,
            },
        };
        Server { app: Arc::new(app) }
    }

    /// Sends a request and reads the whole answer.
    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let response = router(Arc::clone(&self.app))
            .oneshot(request)
            .await
            .unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status,
            headers: parts.headers,
            text: String::from_utf8(bytes.to_vec()).unwrap(),
        }
    }

    pub(crate) async fn post(&self, path: &str, body: impl ToString) -> Answer {
        self.send(post(path, body)).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        let request = Request::get(path).body(Body::empty()).unwrap();
        self.send(request).await
    }

    pub(crate) fn stats(&self) -> EngineStats {
        self.app.engine.stats()
    }

    /// Waits until the engine's figures are as they should be, or fails after ten seconds.
    pub(crate) async fn until(&self, what: &str, is: impl Fn(&EngineStats) -> bool) {
        let start = Instant::now();
        while !is(&self.stats()) {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "{what}: {:?}",
                self.stats()
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub(crate) async fn until_idle(&self) {
        self.until("idle", |stats| {
            stats.num_running + stats.num_waiting + stats.num_referenced_blocks == 0
        })
        .await;
    }
}

pub(crate) fn post(path: &str, body: impl ToString) -> Request<Body> {
    Request::post(path)
        .header("content-type", "application/json")
        .body(Body::from(body.to_string()))
        .unwrap()
}

/// Text of choice `index` in the chunks of a stream.
pub(crate) fn joined(chunks: &[Value], index: usize, text_of: impl Fn(&Value) -> &Value) -> String {
    chunks
        .iter()
        .flat_map(|chunk| chunk["choices"].as_array().unwrap())
        .filter(|choice| choice["index"] == index)
        .filter_map(|choice| text_of(choice).as_str())
        .collect()
}

pub(crate) const COMPLETIONS: &str = "/v1/completions";
pub(crate) const CHAT: &str = "/v1/chat/completions";

/// `body` with the fields of `extra`.
pub(crate) fn with(mut body: Value, extra: &Value) -> Value {
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

pub(crate) fn choices(answer: &Value) -> &[Value] {
    answer["choices"].as_array().unwrap()
}
