//! Answers that are ranked: the best of many samples, and beam search.

use pageloom::api::router;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::{CHAT, COMPLETIONS, Server, Setup, choices, joined, post, slow_steps, with};

pub(crate) fn valid(path: &str) -> Value {
    match path {
        COMPLETIONS => json!({"prompt": "the cat sat", "max_tokens": 6, "seed": 3}),
        _ => json!({
            "messages": [{"role": "user", "content": "the cat sat"}], "max_tokens": 6, "seed": 3
        }),
    }
}

fn scores(answer: &Value) -> Vec<f64> {
    let score = |choice: &Value| choice["score"].as_f64().expect("ranked");
    choices(answer).iter().map(score).collect()
}

fn text(choice: &Value) -> &str {
    let text = choice["text"].as_str();
    text.or(choice["message"]["content"].as_str()).unwrap()
}

/// Log-probabilities of a completion's own tokens.
fn logprobs(choice: &Value) -> Vec<f64> {
    let list = choice["logprobs"]["token_logprobs"].as_array().unwrap();
    list.iter().map(|value| value.as_f64().unwrap()).collect()
}

#[tokio::test]
async fn best_of_returns_the_likeliest_of_as_many_samples() {
    let server = Server::new();
    let ask = |seed: u64| {
        json!({
            "prompt": "one two", "max_tokens": 40, "seed": seed, "logprobs": 0,
            "return_token_ids": true
        })
    };
    let mean = |choice: &Value| {
        let logprobs = logprobs(choice);
        logprobs.iter().sum::<f64>() / logprobs.len() as f64
    };
    // The simulator's log-probabilities are whole multiples of one: some seeds give ties.
    let mut untied = None;
    for seed in 0..50 {
        let body = with(ask(seed), &json!({"n": 7}));
        let mut all = choices(&server.post(COMPLETIONS, body).await.ok()).to_vec();
        all.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
        if all
            .windows(2)
            .all(|pair| mean(&pair[0]) > mean(&pair[1]) + 1e-4)
        {
            untied = Some((seed, all));
            break;
        }
    }
    let (seed, expected) = untied.expect("a seed without ties");
    let ask = ask(seed);
    for n in [1, 3, 6] {
        let body = with(ask.clone(), &json!({"n": n, "best_of": 7}));
        let best = server.post(COMPLETIONS, &body).await.ok();
        assert_eq!(choices(&best).len(), n);
        for (index, (choice, expected)) in choices(&best).iter().zip(&expected).enumerate() {
            assert_eq!(choice["index"], index);
            for field in ["text", "token_ids", "logprobs", "finish_reason"] {
                assert_eq!(choice[field], expected[field], "{field} of {index} of {n}");
            }
            let score = choice["score"].as_f64().unwrap();
            assert!((score - mean(expected)).abs() < 1e-4, "{score}");
        }
        // What ranks them is not shown to those who did not ask.
        let mut quiet = body;
        quiet["logprobs"] = Value::Null;
        let answer = server.post(COMPLETIONS, &quiet).await.ok();
        assert_eq!(answer["choices"][0]["logprobs"], Value::Null);
        assert_eq!(scores(&answer), scores(&best));
    }
    server.until_idle().await;
}

#[tokio::test]
async fn beams_come_by_score_and_a_score_is_what_the_length_penalty_makes_of_it() {
    let server = Server::new();
    for penalty in [1.0, 0.0, 2.5, -0.5] {
        let extra = json!({
            "use_beam_search": true, "n": 4, "best_of": 6, "length_penalty": penalty, "logprobs": 0,
            "max_tokens": 12, "stop_token_ids": (100..160).collect::<Vec<u32>>()
        });
        let answer = server
            .post(COMPLETIONS, with(valid(COMPLETIONS), &extra))
            .await
            .ok();
        let found = scores(&answer);
        assert_eq!(found.len(), 4);
        assert!(found.is_sorted_by(|a, b| a >= b), "{penalty}: {found:?}");
        for (choice, score) in choices(&answer).iter().zip(found) {
            let logprobs = logprobs(choice);
            let sum: f64 = logprobs.iter().sum();
            let expected = sum / (logprobs.len() as f64).powf(penalty);
            assert!(
                (score - expected).abs() < 1e-4 * expected.abs(),
                "{score} {expected}"
            );
        }
        let texts: Vec<&Value> = choices(&answer).iter().map(|c| &c["logprobs"]).collect();
        assert!(texts.windows(2).all(|pair| pair[0] != pair[1]), "{answer}");
    }
    server.until_idle().await;
}

#[tokio::test]
async fn a_search_with_one_beam_is_greedy_and_draws_nothing() {
    let server = Server::new();
    for path in [COMPLETIONS, CHAT] {
        let greedy = with(valid(path), &json!({"temperature": 0, "max_tokens": 30}));
        let greedy = server.post(path, greedy).await.ok();
        for extra in [json!({"seed": 1}), json!({"seed": 2, "temperature": 0})] {
            let body = with(
                valid(path),
                &json!({"use_beam_search": true, "max_tokens": 30}),
            );
            let found = server.post(path, with(body, &extra)).await.ok();
            assert_eq!(text(&found["choices"][0]), text(&greedy["choices"][0]));
        }
    }
}

#[tokio::test]
async fn early_stopping_says_when_a_search_ends() {
    let server = Server::new();
    let stop: Vec<u32> = (100..164).collect();
    let num_steps = async |early_stopping: Value, prompt: u32| {
        let body = json!({
            "prompt": [prompt, 7], "use_beam_search": true, "n": 4, "max_tokens": 40,
            "length_penalty": 2, "stop_token_ids": stop, "early_stopping": early_stopping
        });
        let before = server.stats().num_steps;
        server.post(COMPLETIONS, body).await.ok();
        server.until_idle().await;
        server.stats().num_steps - before
    };
    let mut sums = [0; 3];
    for prompt in 30..50 {
        for (sum, how) in sums
            .iter_mut()
            .zip([json!(true), json!(false), json!("never")])
        {
            *sum += num_steps(how, prompt).await;
        }
    }
    assert!(sums[0] < sums[1] && sums[1] < sums[2], "{sums:?}");
}

#[tokio::test]
async fn beams_are_streamed_when_they_are_found() {
    let server = Server::new();
    for path in [COMPLETIONS, CHAT] {
        let extra = json!({
            "use_beam_search": true, "n": 3, "return_token_ids": true,
            "logprobs": if path == CHAT { json!(true) } else { json!(1) }
        });
        let mut body = with(valid(path), &extra);
        let whole = server.post(path, &body).await.ok();
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let mut chunks = server.post(path, &body).await.chunks();
        let last = chunks.pop().unwrap();
        assert_eq!(
            last["usage"]["completion_tokens"],
            whole["usage"]["completion_tokens"]
        );
        for choice in choices(&whole) {
            let index = choice["index"].as_u64().unwrap() as usize;
            let mine: Vec<&Value> = chunks
                .iter()
                .flat_map(choices)
                .filter(|c| c["index"] == index)
                .collect();
            let (end, before) = mine.split_last().unwrap();
            assert_eq!(end["score"], choice["score"]);
            assert_eq!(end["finish_reason"], choice["finish_reason"]);
            assert_eq!(end["token_ids"], choice["token_ids"]);
            assert_eq!(end["logprobs"], choice["logprobs"]);
            assert!(before.iter().all(|c| c.get("score").is_none()));
            if path == CHAT {
                let role = json!({"role": "assistant", "content": ""});
                assert_eq!((before.len(), &before[0]["delta"]), (1, &role));
            }
            let streamed = joined(&chunks, index, |c| match path {
                CHAT => &c["delta"]["content"],
                _ => &c["text"],
            });
            assert_eq!(streamed, text(choice));
        }
    }
    server.until_idle().await;
}

#[tokio::test]
async fn every_prompt_has_its_beams_in_order() {
    let server = Server::new();
    let extra = json!({"use_beam_search": true, "n": 2, "best_of": 3, "max_tokens": 5});
    let together = with(
        extra.clone(),
        &json!({"prompt": ["a", "b c"], "echo": true}),
    );
    let together = server.post(COMPLETIONS, together).await.ok();
    assert_eq!(choices(&together).len(), 4);
    for (i, prompt) in ["a", "b c"].into_iter().enumerate() {
        let alone = with(extra.clone(), &json!({"prompt": prompt}));
        let alone = server.post(COMPLETIONS, alone).await.ok();
        for (k, choice) in choices(&alone).iter().enumerate() {
            let other = &together["choices"][2 * i + k];
            assert_eq!(other["index"], 2 * i + k);
            assert_eq!(text(other), format!("{prompt}{}", text(choice)));
            assert_eq!(other["score"], choice["score"]);
        }
    }
}

#[tokio::test]
async fn the_usage_counts_what_is_returned() {
    let server = Server::new();
    let body = json!({
        "prompt": "a", "n": 2, "best_of": 5, "max_tokens": 7, "ignore_eos": true
    });
    let usage = server.post(COMPLETIONS, body).await.ok()["usage"].take();
    assert_eq!(usage["completion_tokens"], 14);
    server.until_idle().await;
    assert_eq!(server.stats().num_generation_tokens, 35);
}

#[tokio::test]
async fn only_the_prompt_can_be_asked_for_in_any_mode() {
    let server = Server::new();
    for extra in [
        json!({"best_of": 3, "n": 2}),
        json!({"use_beam_search": true, "n": 2}),
    ] {
        let body = json!({"prompt": "a b", "max_tokens": 0, "echo": true, "logprobs": 1});
        let answer = server.post(COMPLETIONS, with(body, &extra)).await;
        let answer = answer.ok();
        assert_eq!(choices(&answer).len(), 2, "{extra}");
        for choice in choices(&answer) {
            assert_eq!(
                (text(choice), &choice["finish_reason"]),
                ("a b", &json!("length"))
            );
        }
        assert_eq!(answer["usage"]["completion_tokens"], 0);
    }
    server.until_idle().await;
}

#[tokio::test]
async fn a_beam_that_fails_is_an_error_of_its_own_request() {
    let mut setup = Setup::default();
    setup.sim.poison_token = Some(77);
    let server = Server::with(setup);
    let bad = json!({"prompt": [77, 40], "max_tokens": 4, "use_beam_search": true, "n": 3});
    let good = json!({"prompt": [40, 41], "max_tokens": 1, "use_beam_search": true, "n": 3});
    let (bad_answer, good_answer) = tokio::join!(
        server.post(COMPLETIONS, &bad),
        server.post(COMPLETIONS, &good)
    );
    assert_eq!(bad_answer.error().0, 500);
    assert_eq!(choices(&good_answer.ok()).len(), 3);
    let streamed = with(bad, &json!({"stream": true}));
    let chunks = server.post(COMPLETIONS, streamed).await.chunks();
    assert_eq!(chunks.last().unwrap()["error"]["code"], 500, "{chunks:?}");
    server.until_idle().await;
}

#[tokio::test]
async fn a_client_that_leaves_a_search_frees_its_blocks() {
    let server = Server::with(Setup {
        sim: slow_steps(),
        ..Setup::default()
    });
    for extra in [
        json!({"use_beam_search": true, "n": 4, "stream": true}),
        json!({"best_of": 4}),
    ] {
        let body = json!({"prompt": "a b c", "max_tokens": 400, "ignore_eos": true});
        let request = post(COMPLETIONS, with(body, &extra));
        let answer = tokio::spawn(router(server.app.clone()).oneshot(request));
        server
            .until("four running", |stats| stats.num_running == 4)
            .await;
        match answer.is_finished() {
            // A stream has begun, and its body is let go of.
            true => drop(answer.await.unwrap().unwrap()),
            false => answer.abort(),
        }
        server.until_idle().await;
    }
    let finished = server.stats().finished;
    assert_eq!((finished.abort, finished.length), (8, 0));
}
