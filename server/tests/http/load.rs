//! Too much work, and the end of it.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::{Server, Setup, slow_steps};

const PATH: &str = "/v1/completions";

fn small_queue() -> Server {
    let mut setup = Setup {
        sim: slow_steps(),
        ..Setup::default()
    };
    setup.engine.max_num_seqs = 1;
    setup.engine.max_num_queued_requests = 2;
    Server::with(setup)
}

/// Posts `body`, and returns when the engine runs it.
async fn start(server: &Server, body: &Value) -> JoinHandle<Value> {
    let running = tokio::spawn({
        let (server, body) = (server.clone(), body.clone());
        async move { server.post(PATH, body).await.ok() }
    });
    server
        .until("one running", |stats| stats.num_running == 1)
        .await;
    running
}

#[tokio::test]
async fn a_full_queue_is_503_with_a_time_to_come_back() {
    let server = small_queue();
    let body = json!({"prompt": "a", "max_tokens": 100, "ignore_eos": true});
    let running = start(&server, &body).await;
    // More prompts than the queue holds: none of them stays behind.
    let many = json!({"prompt": ["a", "b", "c", "d", "e"], "max_tokens": 2});
    let answer = server.post(PATH, many).await;
    assert_eq!(answer.error().0, 503);
    assert!(
        answer.headers["retry-after"]
            .to_str()
            .unwrap()
            .parse::<u32>()
            .unwrap()
            >= 1
    );
    running.await.unwrap();
    server.until_idle().await;
    // And there is room again.
    server
        .post(PATH, json!({"prompt": "a", "max_tokens": 1}))
        .await
        .ok();
}

#[tokio::test]
async fn a_server_going_down_finishes_what_runs_and_refuses_the_rest() {
    let server = small_queue();
    let body = json!({"prompt": "a", "max_tokens": 50, "ignore_eos": true});
    let running = start(&server, &body).await;
    server.app.engine.begin_drain();
    let refused = server.post(PATH, &body).await;
    assert_eq!(refused.error().0, 503);
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(running.await.unwrap()["usage"]["completion_tokens"], 50);
}

#[tokio::test]
async fn what_outlasts_the_drain_is_cut_off_with_an_error() {
    let server = small_queue();
    let body = json!({"prompt": "a", "max_tokens": 500, "ignore_eos": true, "stream": true});
    let running = tokio::spawn({
        let server = server.clone();
        async move { server.post(PATH, body).await.chunks() }
    });
    server
        .until("one running", |stats| stats.num_running == 1)
        .await;
    server.app.engine.shutdown(Duration::ZERO).await;
    let chunks = running.await.unwrap();
    assert_eq!(chunks.last().unwrap()["error"]["code"], 503);
    assert_eq!(server.get("/health").await.status, 503);
    let (status, ..) = server.post(PATH, json!({"prompt": "a"})).await.error();
    assert!(status >= 500);
}
