//! `/v1/completions`: shapes, echo, log-probabilities, streams.

use serde_json::{Value, json};

use crate::support::{Server, Setup, joined};

const PATH: &str = "/v1/completions";

async fn complete(server: &Server, body: Value) -> Value {
    server.post(PATH, body).await.ok()
}

fn len(value: &Value) -> usize {
    value.as_array().unwrap().len()
}

#[tokio::test]
async fn an_answer_has_text_a_reason_and_the_usage() {
    let server = Server::new();
    let prompt = "the cat";
    let num_prompt = server.app.tokenizer.encode(prompt, true).unwrap().len();
    let answer = complete(
        &server,
        json!({"model": "tiny", "prompt": prompt, "max_tokens": 5, "ignore_eos": true}),
    )
    .await;
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["model"], "tiny");
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["index"], &choice["finish_reason"]),
        (&json!(0), &json!("length"))
    );
    assert_eq!(choice["logprobs"], Value::Null);
    let usage = &answer["usage"];
    assert_eq!(usage["prompt_tokens"], num_prompt);
    assert_eq!(usage["completion_tokens"], 5);
    assert_eq!(usage["total_tokens"], num_prompt + 5);
    // The default is 16 tokens.
    let answer = complete(&server, json!({"prompt": prompt, "ignore_eos": true})).await;
    assert_eq!(answer["usage"]["completion_tokens"], 16);
    server.until_idle().await;
}

#[tokio::test]
async fn every_prompt_has_its_choices_in_order() {
    let server = Server::new();
    let body = json!({"prompt": ["a", "b c", "d"], "n": 2, "max_tokens": 4, "echo": true, "ignore_eos": true});
    let answer = complete(&server, body).await;
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 6);
    for (i, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], i);
        let text = choice["text"].as_str().unwrap();
        assert!(text.starts_with(["a", "b c", "d"][i / 2]), "{text}");
    }
    assert_eq!(answer["usage"]["completion_tokens"], 24);
    let ids = json!({"prompt": [[5, 6], [7]], "max_tokens": 1});
    assert_eq!(complete(&server, ids).await["usage"]["prompt_tokens"], 3);
}

#[tokio::test]
async fn a_seed_repeats_an_answer_and_no_seed_does_not() {
    let server = Server::new();
    let body = json!({"prompt": "a", "max_tokens": 30, "ignore_eos": true, "seed": 7});
    let text = |answer: Value| answer["choices"][0]["text"].as_str().unwrap().to_owned();
    let first = text(complete(&server, body.clone()).await);
    assert_eq!(first, text(complete(&server, body).await));
    let open = json!({"prompt": "a", "max_tokens": 30, "ignore_eos": true});
    let one = text(complete(&server, open.clone()).await);
    assert_ne!(one, text(complete(&server, open).await));
}

#[tokio::test]
async fn echo_with_logprobs_scores_the_prompt_as_evaluation_harnesses_read_it() {
    let server = Server::new();
    let prompt = vec![40u32, 41, 42, 43, 44];
    for max_tokens in [0usize, 1] {
        let body = json!({
            "prompt": [prompt], "max_tokens": max_tokens, "echo": true, "logprobs": 2, "temperature": 0
        });
        let answer = complete(&server, body).await;
        let choice = &answer["choices"][0];
        let scores = &choice["logprobs"];
        for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(
                len(&scores[list]),
                prompt.len() + max_tokens,
                "{list}: {answer}"
            );
        }
        assert_eq!(scores["token_logprobs"][0], Value::Null);
        assert_eq!(scores["top_logprobs"][0], Value::Null);
        let mut offset = 0;
        for i in 0..prompt.len() + max_tokens {
            assert_eq!(scores["text_offset"][i], offset);
            let token = scores["tokens"][i].as_str().unwrap();
            offset += token.chars().count();
            if i > 0 {
                let logprob = scores["token_logprobs"][i].as_f64().unwrap();
                assert!(logprob <= 0.0);
                let top = scores["top_logprobs"][i].as_object().unwrap();
                assert!((1..=3).contains(&top.len()));
                assert!(top.contains_key(token), "{top:?} has no {token:?}");
            }
        }
        assert_eq!(answer["usage"]["completion_tokens"], max_tokens);
        assert_eq!(choice["finish_reason"], "length");
    }
    server.until_idle().await;
}

#[tokio::test]
async fn scores_are_the_same_on_a_cached_prefix() {
    let server = Server::new();
    let prompt: Vec<u32> = (30..90).collect();
    let body = json!({"prompt": prompt, "max_tokens": 0, "echo": true, "logprobs": 1});
    let first = complete(&server, body.clone()).await;
    // Without scores the prompt's blocks are found in the cache...
    let plain = complete(&server, json!({"prompt": prompt, "max_tokens": 1})).await;
    assert!(
        plain["usage"]["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
            > 0
    );
    // ...and with scores no position may be missing because of that.
    let second = complete(&server, body).await;
    assert_eq!(first["choices"], second["choices"]);
}

#[tokio::test]
async fn the_usage_tells_how_much_of_the_prompt_was_cached() {
    let prompt: Vec<u32> = (30..90).collect();
    let cached = async |server: &Server, extra: Value| {
        let mut body = json!({"prompt": prompt, "max_tokens": 2, "ignore_eos": true});
        for (name, value) in extra.as_object().unwrap() {
            body[name] = value.clone();
        }
        let usage = complete(server, body).await["usage"].take();
        assert_eq!(usage["prompt_tokens"], 60);
        usage["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
    };
    let server = Server::new();
    // Three full blocks of 16 tokens.
    for (extra, expected) in [
        (json!({}), 0),
        (json!({}), 48),
        (json!({"n": 3}), 48),
        (json!({"use_beam_search": true, "best_of": 3}), 48),
        (json!({"cache_salt": "a"}), 0),
        (json!({"cache_salt": "a"}), 48),
        (json!({"cache_salt": "b"}), 0),
    ] {
        assert_eq!(cached(&server, extra.clone()).await, expected, "{extra}");
    }
    let mut setup = Setup::default();
    setup.engine.enable_prefix_caching = false;
    let server = Server::with(setup);
    for _ in 0..2 {
        assert_eq!(cached(&server, json!({})).await, 0);
    }
}

#[tokio::test]
async fn token_ids_and_prompt_logprobs_come_when_asked_for() {
    let server = Server::new();
    let body = json!({
        "prompt": [50, 51, 52], "max_tokens": 4, "return_token_ids": true, "prompt_logprobs": 3,
        "ignore_eos": true, "request_id": "mine"
    });
    let answer = complete(&server, body).await;
    assert_eq!(answer["id"], "cmpl-mine");
    let choice = &answer["choices"][0];
    assert_eq!(choice["prompt_token_ids"], json!([50, 51, 52]));
    assert_eq!(len(&choice["token_ids"]), 4);
    let scores = choice["prompt_logprobs"].as_array().unwrap();
    assert_eq!((scores.len(), &scores[0]), (3, &Value::Null));
    let own = &scores[1]["51"];
    assert!(own["logprob"].as_f64().unwrap() <= 0.0 && own["rank"].as_u64().unwrap() >= 1);
    // Without being asked for, log-probabilities of the text are not there.
    assert_eq!(choice["logprobs"], Value::Null);
}

#[tokio::test]
async fn stop_strings_and_stop_tokens_end_the_text_and_are_named() {
    let server = Server::new();
    let body = json!({"prompt": "a", "max_tokens": 40, "seed": 3, "ignore_eos": true, "return_token_ids": true});
    let whole = complete(&server, body.clone()).await;
    let text = whole["choices"][0]["text"].as_str().unwrap();
    let word: String = text.chars().skip(10).take(2).collect();
    let mut stopped = body.clone();
    stopped["stop"] = json!([word]);
    let choice = complete(&server, stopped.clone()).await["choices"][0].take();
    assert_eq!(
        (&choice["finish_reason"], &choice["stop_reason"]),
        (&json!("stop"), &json!(word))
    );
    let before = &text[..text.find(&word).unwrap()];
    assert_eq!(choice["text"], before);
    stopped["include_stop_str_in_output"] = json!(true);
    let choice = complete(&server, stopped).await["choices"][0].take();
    assert_eq!(choice["text"], format!("{before}{word}"));
    let mut by_token = body;
    let id = &whole["choices"][0]["token_ids"][5];
    by_token["stop_token_ids"] = json!([id]);
    let choice = complete(&server, by_token).await["choices"][0].take();
    assert_eq!(
        (&choice["finish_reason"], &choice["stop_reason"]),
        (&json!("stop"), id)
    );
}

#[tokio::test]
async fn a_stream_joined_is_the_answer_that_is_not_streamed() {
    let server = Server::new();
    for extra in [
        json!({}),
        json!({"n": 3}),
        json!({"echo": true, "logprobs": 2}),
        json!({"stop": ["e", "zz"], "logprobs": 0}),
        json!({"prompt": ["one", "two"], "n": 2}),
        json!({"skip_special_tokens": false, "return_token_ids": true}),
    ] {
        let mut body = json!({"prompt": "héllo ✓ wörld", "max_tokens": 60, "seed": 11});
        for (name, value) in extra.as_object().unwrap() {
            body[name] = value.clone();
        }
        let whole = complete(&server, body.clone()).await;
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let mut chunks = server.post(PATH, &body).await.chunks();
        let last = chunks.pop().unwrap();
        assert_eq!(last["choices"], json!([]));
        for key in ["prompt_tokens", "completion_tokens", "total_tokens"] {
            assert_eq!(last["usage"][key], whole["usage"][key], "{extra}");
        }
        for choice in whole["choices"].as_array().unwrap() {
            let index = choice["index"].as_u64().unwrap() as usize;
            assert_eq!(
                joined(&chunks, index, |c| &c["text"]),
                choice["text"].as_str().unwrap(),
                "{extra}"
            );
            let mine = || {
                let all = chunks.iter().flat_map(|c| c["choices"].as_array().unwrap());
                all.filter(move |c| c["index"] == index)
            };
            let ends: Vec<_> = mine().filter(|c| !c["finish_reason"].is_null()).collect();
            assert_eq!(ends.len(), 1);
            assert_eq!(ends[0]["finish_reason"], choice["finish_reason"]);
            assert_eq!(ends[0]["stop_reason"], choice["stop_reason"]);
            for list in ["tokens", "token_logprobs", "text_offset", "top_logprobs"] {
                let of = |c: &Value| c["logprobs"][list].as_array().cloned().unwrap_or_default();
                assert_eq!(
                    mine().flat_map(of).collect::<Vec<_>>(),
                    of(choice),
                    "{list} {extra}"
                );
            }
            let ids = |c: &Value| c["token_ids"].as_array().cloned().unwrap_or_default();
            assert_eq!(mine().flat_map(ids).collect::<Vec<_>>(), ids(choice));
        }
        assert!(
            chunks
                .iter()
                .all(|c| c["usage"].is_null() && c["id"] == last["id"])
        );
    }
    server.until_idle().await;
}

#[tokio::test]
async fn usage_is_streamed_only_when_asked_for() {
    let server = Server::new();
    let chunks = server
        .post(PATH, json!({"prompt": "a", "stream": true}))
        .await
        .chunks();
    assert!(
        chunks
            .iter()
            .all(|c| c.get("usage").is_none() && !c["choices"].as_array().unwrap().is_empty())
    );
}

#[tokio::test]
async fn a_prompt_is_cut_to_its_last_tokens_when_asked_for() {
    let server = Server::new();
    let body = json!({
        "prompt": (30..60).collect::<Vec<u32>>(), "truncate_prompt_tokens": 4, "max_tokens": 1,
        "return_token_ids": true
    });
    let answer = complete(&server, body).await;
    assert_eq!(
        answer["choices"][0]["prompt_token_ids"],
        json!([56, 57, 58, 59])
    );
    assert_eq!(answer["usage"]["prompt_tokens"], 4);
}

#[tokio::test]
async fn a_row_that_fails_is_an_error_of_its_own_request() {
    let mut setup = Setup::default();
    setup.sim.poison_token = Some(77);
    let server = Server::with(setup);
    let bad = json!({"prompt": [77, 40], "max_tokens": 4});
    let good = json!({"prompt": [40, 41], "max_tokens": 4, "ignore_eos": true, "logit_bias": {"77": -100}, "temperature": 0});
    let (bad_answer, good_answer) = tokio::join!(server.post(PATH, &bad), server.post(PATH, &good));
    assert_eq!(bad_answer.error().0, 500);
    assert_eq!(good_answer.ok()["usage"]["completion_tokens"], 4);
    let mut streamed = bad;
    streamed["stream"] = json!(true);
    let chunks = server.post(PATH, &streamed).await.chunks();
    assert_eq!(chunks.last().unwrap()["error"]["code"], 500, "{chunks:?}");
    server.until_idle().await;
}
