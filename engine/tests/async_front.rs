//! Many clients, one engine: streams, departures, slowness, shutting down.

mod support;

use std::{
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use pageloom_engine::{
    AsyncEngine, Engine, EngineConfig, EngineStats, Executor, ExecutorError, FinishReason, Request,
    RequestError, RequestEvent, RequestStream, SimConfig, SimExecutor,
};
use pageloom_model_runner::{Batch, StepOutput};
use support::{Transcript, alone, engine, engine_with, greedy, prompt, sim, tokenizer};

/// Polls, for what the engine's thread does in its own time.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn is_idle(stats: &EngineStats) -> bool {
    stats.num_running == 0 && stats.num_waiting == 0 && stats.num_referenced_blocks == 0
}

async fn read(mut stream: RequestStream) -> Transcript {
    let mut transcript = Transcript::default();
    while let Some(event) = stream.next().await {
        transcript.take(event);
    }
    transcript
}

/// An executor that computes a step only when told to.
struct Gated {
    inner: SimExecutor,
    gate: Gate,
}

#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<u64>, Condvar)>);

impl Gate {
    fn open(&self, num_steps: u64) {
        *self.0.0.lock().unwrap() += num_steps;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        let waited = self
            .0
            .1
            .wait_while(self.0.0.lock().unwrap(), |left| *left == 0);
        *waited.unwrap() -= 1;
    }
}

impl Executor for Gated {
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    fn submit(&mut self, batch: Batch) -> Result<(), ExecutorError> {
        self.inner.submit(batch)
    }

    fn wait(&mut self) -> Result<(Batch, StepOutput), ExecutorError> {
        self.gate.pass();
        self.inner.wait()
    }
}

fn gated(config: EngineConfig) -> (AsyncEngine, Gate) {
    let gate = Gate::default();
    let executor = Gated {
        inner: SimExecutor::new(sim(&config)),
        gate: gate.clone(),
    };
    let engine = Engine::new(config, Box::new(executor), tokenizer()).unwrap();
    (AsyncEngine::spawn(engine), gate)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_clients_of_whom_a_third_leave_mid_way() {
    let config = EngineConfig {
        num_blocks: 300,
        max_num_seqs: 64,
        ..EngineConfig::default()
    };
    let sim = SimConfig {
        step_time: Duration::from_millis(1),
        token_time: Duration::ZERO,
        sleep: true,
        ..sim(&config)
    };
    let engine = AsyncEngine::spawn(engine_with(config, sim));
    let clients = (0..200_usize).map(|i| {
        let engine = engine.clone();
        tokio::spawn(async move {
            let prompt = prompt(i as u32 % 7, 5 + i % 60);
            if i % 3 == 0 {
                let mut stream = engine.submit(greedy(prompt, 2000)).await.expect("taken");
                for _ in 0..i % 10 {
                    stream.next().await.expect("more to come");
                }
                return;
            }
            let request = greedy(prompt, 20 + i % 40);
            let stream = engine.submit(request.clone()).await.expect("taken");
            assert_eq!(read(stream).await.outcomes, alone(&request).outcomes);
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.expect("no client fails");
    }
    until("idle", || is_idle(&engine.stats())).await;
    let stats = engine.stats();
    assert_eq!(stats.num_free_blocks + stats.num_cached_blocks, 300);
    assert_eq!(stats.finished.length, 133);
    // Who left before being taken in was never counted.
    assert!(stats.finished.abort <= 67);
    assert_eq!(stats.finished.error, 0);
    assert!(engine.is_healthy());
}

#[tokio::test]
async fn a_dropped_streams_blocks_are_free_within_a_step() {
    let (engine, gate) = gated(EngineConfig::default());
    let mut stream = engine.submit(greedy(prompt(1, 40), 1000)).await.unwrap();
    gate.open(1);
    assert!(matches!(
        stream.next().await,
        Some(RequestEvent::Prompt { .. })
    ));
    drop(stream);
    gate.open(1);
    until("idle", || is_idle(&engine.stats())).await;
    assert!(engine.stats().num_steps <= 2);
    assert_eq!(engine.stats().finished.abort, 1);
}

#[tokio::test]
async fn a_slow_client_finds_its_deltas_merged_and_holds_nobody_up() {
    let engine = AsyncEngine::spawn(engine(EngineConfig::default()));
    let request = Request {
        n: 2,
        ..greedy(prompt(1, 40), 500)
    };
    let mut slow = engine.submit(request.clone()).await.unwrap();
    let fast = engine.submit(greedy(prompt(2, 40), 500)).await.unwrap();
    assert_eq!(read(fast).await.ids(0).len(), 500);
    until("idle", || is_idle(&engine.stats())).await;
    let mut transcript = Transcript::default();
    let mut num_events = 0;
    while let Some(event) = slow.next().await {
        num_events += 1;
        transcript.take(event);
    }
    assert_eq!(num_events, 3, "the prompt's and one for each sequence");
    assert_eq!(transcript.outcomes, alone(&request).outcomes);
    assert_eq!(slow.next().await, None);
}

#[tokio::test]
async fn an_observer_gets_the_figures_of_every_step() {
    let (sender, observed) = std::sync::mpsc::channel();
    let observe = move |stats: &EngineStats| _ = sender.send((stats.num_steps, stats.step_time));
    let engine = AsyncEngine::spawn_observed(engine(EngineConfig::default()), observe);
    let request = engine.submit(greedy(prompt(1, 40), 20)).await.unwrap();
    assert_eq!(read(request).await.ids(0).len(), 20);
    engine.shutdown(Duration::ZERO).await;
    let (steps, times): (Vec<_>, Vec<_>) = observed.iter().unzip();
    assert_eq!(steps, (1..=20).collect::<Vec<_>>());
    assert!(times.is_sorted());
}

#[tokio::test]
async fn the_queue_is_full_before_the_engine_has_looked_at_it() {
    let (engine, gate) = gated(EngineConfig {
        max_num_queued_requests: 3,
        ..EngineConfig::default()
    });
    let running = engine.submit(greedy(prompt(1, 10), 3)).await.unwrap();
    until("the first step", || engine.stats().num_waiting == 0).await;
    let mut taken = Vec::new();
    let refused = loop {
        match engine.submit(greedy(prompt(2, 10), 3)).await {
            Ok(stream) => taken.push(stream),
            Err(refused) => break refused,
        }
        assert!(taken.len() < 10);
    };
    assert!(
        matches!(refused, RequestError::QueueFull { .. }),
        "{refused}"
    );
    assert!((2..=3).contains(&taken.len()), "{}", taken.len());
    gate.open(u64::from(u32::MAX));
    for stream in taken.into_iter().chain([running]) {
        assert_eq!(read(stream).await.ids(0).len(), 3);
    }
    engine.submit(greedy(prompt(2, 10), 3)).await.unwrap();
}

#[tokio::test]
async fn a_bad_request_is_refused_at_once_while_a_step_runs() {
    let (engine, gate) = gated(EngineConfig::default());
    let _running = engine.submit(greedy(prompt(1, 10), 3)).await.unwrap();
    let refused = engine.submit(greedy(Vec::new(), 3)).await.unwrap_err();
    assert!(matches!(
        refused,
        RequestError::InvalidParam {
            field: "prompt",
            ..
        }
    ));
    gate.open(u64::from(u32::MAX));
}

#[tokio::test]
async fn draining_finishes_what_runs_and_refuses_the_rest() {
    let (engine, gate) = gated(EngineConfig::default());
    let stream = engine.submit(greedy(prompt(1, 10), 8)).await.unwrap();
    engine.begin_drain();
    let refused = engine.submit(greedy(prompt(1, 10), 8)).await;
    assert_eq!(refused.unwrap_err(), RequestError::ShuttingDown);
    gate.open(u64::from(u32::MAX));
    let reader = tokio::spawn(read(stream));
    engine.shutdown(Duration::from_secs(60)).await;
    assert_eq!(reader.await.unwrap().ids(0).len(), 8);
    let refused = engine.submit(greedy(prompt(1, 10), 8)).await;
    assert_eq!(refused.unwrap_err(), RequestError::EngineDead);
    assert!(!engine.is_healthy());
}

#[tokio::test]
async fn shutdown_ends_what_is_unfinished_at_the_time_out() {
    let (engine, gate) = gated(EngineConfig::default());
    let stream = engine.submit(greedy(prompt(1, 10), 1000)).await.unwrap();
    gate.open(5);
    let reader = tokio::spawn(read(stream));
    until("five steps", || engine.stats().num_generation_tokens >= 4).await;
    // The first future is polled first: the thread is told before its step can end.
    let open = async { gate.open(u64::from(u32::MAX)) };
    tokio::join!(engine.shutdown(Duration::ZERO), open);
    let outcome = reader.await.unwrap().outcomes.remove(&0).unwrap();
    assert_eq!(outcome.finish, Some(FinishReason::Abort));
    assert!((4..10).contains(&outcome.tokens.len()));
}

#[tokio::test]
async fn work_without_progress_is_not_healthy() {
    let (engine, gate) = gated(EngineConfig {
        stall_timeout: Duration::from_millis(20),
        ..EngineConfig::default()
    });
    tokio::time::sleep(Duration::from_millis(40)).await;
    assert!(engine.is_healthy(), "idle is healthy");
    let stream = engine.submit(greedy(prompt(1, 10), 2)).await.unwrap();
    until("unhealthy", || !engine.is_healthy()).await;
    gate.open(u64::from(u32::MAX));
    read(stream).await;
    until("healthy again", || engine.is_healthy()).await;
}

#[tokio::test]
async fn the_last_handle_ends_the_streams() {
    let (engine, gate) = gated(EngineConfig::default());
    let stream = engine.submit(greedy(prompt(1, 10), 1000)).await.unwrap();
    drop(engine);
    gate.open(1);
    let outcome = read(stream).await.outcomes.remove(&0).unwrap();
    assert_eq!(outcome.finish, Some(FinishReason::Abort));
}
