//! Requests of every kind, and whether they come to the same in company as alone.

use pageloom_engine::{
    BeamSearch, EarlyStopping, Engine, EngineConfig, EngineStats, PreemptionMode, Request,
};
use pageloom_model_runner::SamplingParams;

use super::{Harness, MakeEngine, Transcript, alone_in, greedy, prompt};

/// One of each kind: greedy, sampled, several sequences, the best of several, beams, with
/// everything reported.
pub(crate) fn subjects() -> Vec<Request> {
    let sampled = SamplingParams {
        seed: 42,
        logprobs: Some(3),
        ..SamplingParams::default()
    };
    let penalised = SamplingParams {
        frequency_penalty: 0.5,
        ..SamplingParams::greedy()
    };
    vec![
        greedy(prompt(1, 37), 40),
        Request {
            sampling: sampled.clone(),
            prompt_logprobs: Some(2),
            ..greedy(prompt(1, 50), 30)
        },
        Request {
            n: 3,
            sampling: sampled.clone(),
            ..greedy(prompt(2, 33), 25)
        },
        Request {
            n: 2,
            best_of: Some(4),
            sampling: sampled.clone(),
            ..greedy(prompt(2, 33), 20)
        },
        Request {
            n: 3,
            beams: Some(BeamSearch::default()),
            ignore_eos: false,
            sampling: sampled,
            ..greedy(prompt(4, 29), 25)
        },
        Request {
            n: 1,
            best_of: Some(4),
            beams: Some(BeamSearch {
                length_penalty: 0.0,
                early_stopping: EarlyStopping::Never,
            }),
            sampling: penalised.clone(),
            prompt_logprobs: Some(0),
            ..greedy(prompt(1, 40), 30)
        },
        Request {
            sampling: penalised,
            ..greedy(prompt(3, 16), 30)
        },
    ]
}

/// Everything but what is allowed to differ.
pub(crate) fn output(transcript: &Transcript) -> Transcript {
    Transcript {
        num_cached_tokens: 0,
        ..transcript.clone()
    }
}

/// What each subject comes to alone.
pub(crate) fn alone_each(make: MakeEngine) -> Vec<Transcript> {
    let alone = |subject: &Request| output(&alone_in(make, subject));
    subjects().iter().map(alone).collect()
}

/// Sends the subjects among others, and compares what they come to with what is expected. Returns
/// the engine's figures.
pub(crate) fn check_all_in(
    make: impl Fn(EngineConfig) -> Engine,
    expected: &[Transcript],
    config: &EngineConfig,
    others: &[Request],
    min_preemptions: u64,
) -> EngineStats {
    let subjects = subjects();
    let mut harness = Harness::new(make(config.clone()));
    let mut ids = Vec::new();
    for (i, subject) in subjects.iter().enumerate() {
        for other in others.iter().skip(i).step_by(subjects.len()) {
            harness.add(other);
        }
        ids.push(harness.add(subject));
    }
    harness.run();
    for ((id, subject), expected) in ids.iter().zip(&subjects).zip(expected) {
        let got = &harness.transcripts[id];
        assert!(got.is_finished(subject.n));
        assert_eq!(&output(got), expected);
    }
    let stats = harness.engine.stats();
    let preemptions = stats.num_preemptions_by_recompute + stats.num_preemptions_by_swap;
    match config.preemption_mode {
        PreemptionMode::Swap if min_preemptions > 0 => assert!(stats.num_preemptions_by_swap > 0),
        PreemptionMode::Recompute => assert_eq!(stats.num_preemptions_by_swap, 0),
        PreemptionMode::Swap | PreemptionMode::Auto => {}
    }
    assert!(preemptions >= min_preemptions, "{preemptions} preemptions");
    stats
}

/// Requests to meet.
pub(crate) fn sixteen_others() -> Vec<Request> {
    let other = |i: u32| greedy(prompt(i % 5, 3 + 5 * i as usize), 10 + 3 * i as usize);
    (0..16).map(other).collect()
}

/// A pool that is too small for all.
pub(crate) fn crowded(block_size: usize, preemption_mode: PreemptionMode) -> EngineConfig {
    EngineConfig {
        block_size,
        num_blocks: 288_usize.div_ceil(block_size),
        num_host_blocks: 600_usize.div_ceil(block_size),
        preemption_mode,
        max_num_batched_tokens: 64,
        max_num_seqs: 64,
        watermark: 0.0,
        ..EngineConfig::default()
    }
}
