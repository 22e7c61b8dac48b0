//! Cost of a step's decisions: `schedule` and `update` with every sequence decoding.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pageloom_scheduler::{BlockManager, Config, NewSequence, Scheduler, SeqResult};

const PROMPT: usize = 32;
const MAX_TOKENS: usize = 1024;

/// `num_seqs` sequences, all past their prompts.
fn decoding(num_seqs: usize) -> Scheduler {
    let blocks = BlockManager::new(pageloom_block_manager::Config {
        block_size: 16,
        num_blocks: num_seqs * (PROMPT + MAX_TOKENS).div_ceil(16) * 102 / 100,
        ..Default::default()
    })
    .expect("a valid pool");
    let config = Config {
        max_num_seqs: num_seqs,
        max_num_batched_tokens: num_seqs * PROMPT,
        max_num_queued_requests: num_seqs,
        ..Config::default()
    };
    let mut scheduler = Scheduler::new(config, blocks).expect("a valid configuration");
    for i in 0..num_seqs as u32 {
        let sequence = NewSequence {
            prompt: (0..PROMPT as u32).map(|j| i * 7 + j).collect(),
            max_tokens: MAX_TOKENS,
            ..NewSequence::default()
        };
        scheduler
            .add(sequence, std::time::Duration::ZERO)
            .expect("it fits");
    }
    step(&mut scheduler, &mut Vec::new(), &mut Vec::new());
    scheduler
}

fn step(
    scheduler: &mut Scheduler,
    results: &mut Vec<SeqResult>,
    events: &mut Vec<pageloom_scheduler::SeqEvent>,
) -> bool {
    let Some(plan) = scheduler.schedule() else {
        return false;
    };
    results.clear();
    results.extend(plan.seqs.iter().map(|_| SeqResult::Token(11)));
    let step = plan.step;
    scheduler.update(step, results, events);
    true
}

fn steps(c: &mut Criterion) {
    let mut group = c.benchmark_group("schedule+update");
    for num_seqs in [256, 10_000] {
        let mut scheduler = decoding(num_seqs);
        let (mut results, mut events) = (Vec::new(), Vec::new());
        group.throughput(Throughput::Elements(num_seqs as u64));
        group.bench_function(BenchmarkId::from_parameter(num_seqs), |b| {
            b.iter_custom(|iterations| {
                let mut spent = std::time::Duration::ZERO;
                for _ in 0..iterations {
                    let start = std::time::Instant::now();
                    let worked = step(&mut scheduler, &mut results, &mut events);
                    spent += start.elapsed();
                    if !worked {
                        scheduler = decoding(num_seqs);
                    }
                }
                spent
            });
        });
    }
    group.finish();
}

criterion_group!(benches, steps);
criterion_main!(benches);
