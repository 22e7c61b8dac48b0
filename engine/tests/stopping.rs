//! What ends a text, and what the text is then.

mod support;

use pageloom_engine::{EngineConfig, FinishReason, Request, StopCause};
use pageloom_model_runner::SamplingParams;
use support::{Harness, alone, engine, greedy, prompt};

#[test]
fn max_tokens_zero_reports_the_prompt_only() {
    let request = Request {
        prompt_logprobs: Some(1),
        ..greedy(prompt(1, 20), 0)
    };
    let transcript = alone(&request);
    let logprobs = transcript.prompt_logprobs.expect("sent");
    assert_eq!(logprobs.len(), 20);
    assert_eq!(logprobs[0], None);
    assert!(
        logprobs[1..]
            .iter()
            .all(|l| l.as_ref().is_some_and(|l| l.top.len() == 1))
    );
    let outcome = &transcript.outcomes[&0];
    assert_eq!(
        (outcome.tokens.len(), &outcome.finish),
        (0, &Some(FinishReason::Length))
    );
}

#[test]
fn a_stop_token_ends_the_text_and_says_which() {
    let free = alone(&greedy(prompt(1, 20), 40)).ids(0);
    let stop = free[10];
    assert!(!free[..10].contains(&stop), "the test needs another prompt");
    let mut request = greedy(prompt(1, 20), 40);
    request.sampling.stop_token_ids = vec![stop];
    let transcript = alone(&request);
    assert_eq!(transcript.ids(0), free[..11]);
    let finish = FinishReason::Stop(Some(StopCause::Token(stop)));
    assert_eq!(transcript.outcomes[&0].finish, Some(finish));
    let text = support::tokenizer().decode(&free[..10], true).unwrap();
    assert_eq!(transcript.outcomes[&0].text, text);
    request.include_stop_in_output = true;
    let text = support::tokenizer().decode(&free[..11], true).unwrap();
    assert_eq!(alone(&request).outcomes[&0].text, text);
    request.sampling.min_tokens = 11;
    let longer = alone(&request);
    assert!(longer.ids(0).len() > 11);
    assert_ne!(longer.ids(0)[10], stop, "banned until min_tokens");
}

#[test]
fn the_end_of_text_ends_it_unless_ignored() {
    let only_eos = SamplingParams {
        allowed_token_ids: support::tokenizer().eos_ids().to_vec(),
        ..SamplingParams::greedy()
    };
    let mut request = Request {
        sampling: only_eos,
        ignore_eos: false,
        ..greedy(prompt(1, 20), 5)
    };
    let transcript = alone(&request);
    assert_eq!(transcript.ids(0).len(), 1);
    assert_eq!(
        transcript.outcomes[&0].finish,
        Some(FinishReason::Stop(None))
    );
    request.ignore_eos = true;
    assert_eq!(alone(&request).ids(0).len(), 5);
}

#[test]
fn a_stop_string_ends_the_text_wherever_tokens_split_it() {
    let free = alone(&greedy(prompt(6, 20), 40));
    let text = &free.outcomes[&0].text;
    let letters: Vec<_> = text.char_indices().collect();
    for start in 0..letters.len() - 3 {
        let stop = text[letters[start].0..letters[start + 3].0].to_owned();
        let end = text.find(&stop).unwrap();
        let mut request = greedy(prompt(6, 20), 40);
        request.stop = vec!["never in the text".to_owned(), stop.clone()];
        let outcome = alone(&request).outcomes[&0].clone();
        assert_eq!(outcome.text, text[..end]);
        let cause = StopCause::String(stop.clone());
        assert_eq!(outcome.finish, Some(FinishReason::Stop(Some(cause))));
        request.include_stop_in_output = true;
        assert_eq!(alone(&request).outcomes[&0].text, text[..end + stop.len()]);
    }
}

#[test]
fn the_text_is_that_of_all_tokens_decoded_at_once() {
    for family in 0..8 {
        let transcript = alone(&greedy(prompt(family, 20), 60));
        let decoded = support::tokenizer()
            .decode(&transcript.ids(0), true)
            .unwrap();
        assert_eq!(transcript.outcomes[&0].text, decoded);
    }
}

#[test]
fn text_held_back_for_a_stop_string_that_never_came_is_not_lost() {
    let free = alone(&greedy(prompt(6, 20), 40));
    let text = &free.outcomes[&0].text;
    let tail = text.char_indices().nth_back(2).expect("some text").0;
    let mut request = greedy(prompt(6, 20), 40);
    request.stop = vec![format!("{}and on", &text[tail..])];
    assert_eq!(alone(&request).outcomes, free.outcomes);
    // Nor when the caller ends the sequence.
    let decoded = |num_tokens: usize| {
        let ids = &free.ids(0)[..num_tokens];
        support::tokenizer().decode(ids, true).unwrap()
    };
    request.stop = vec![format!("{}and on", decoded(30))];
    let mut harness = Harness::new(engine(EngineConfig::default()));
    let id = harness.add(&request);
    for _ in 0..20 {
        harness.step();
    }
    harness.abort(id);
    assert_eq!(harness.transcripts[&id].outcomes[&0].text, decoded(20));
}
