//! Sequences whose blocks move between the tiers compute what they would have computed.

mod support;

use pageloom_model_runner::{
    Batch, CpuRunner, KvDtype, RunError, TokenId, TokenLogprobs, WeightDtype,
};
use support::{Ask, Sequence, logprobs, push, run, runner, runner_with_host};

const BLOCK_SIZE: usize = 16;
const NUM_HOST_BLOCKS: usize = 8;

fn prompt(len: u32, factor: u32) -> Vec<TokenId> {
    (0..len).map(|i| (i * factor + 11) % 120).collect()
}

/// Does the batch's transfers, computes what the sequence lacks, and appends its most likely
/// token. Returns the log-probabilities of the whole vocabulary.
fn advance(runner: &mut CpuRunner, mut batch: Batch, sequence: &mut Sequence) -> TokenLogprobs {
    let rest = sequence.tokens.len() - sequence.num_computed;
    let all = Ask::Scores { top: usize::MAX };
    push(&mut batch, sequence, rest, BLOCK_SIZE, all);
    let mut last = logprobs(run(runner, &batch)).last().unwrap();
    sequence.tokens.push(last.top[0].0);
    // That of the token to score, which was not known yet.
    last.logprob = 0.0;
    last.rank = 0;
    last
}

fn steps(runner: &mut CpuRunner, sequence: &mut Sequence, num_steps: usize) -> Vec<TokenLogprobs> {
    (0..num_steps)
        .map(|_| advance(runner, Batch::default(), sequence))
        .collect()
}

fn pairs(from: &[u32], to: &[u32]) -> Vec<(u32, u32)> {
    from.iter().copied().zip(to.iter().copied()).collect()
}

#[test]
fn a_sequence_swapped_out_and_in_to_other_blocks_goes_on_bit_for_bit() {
    for name in ["llama", "smollm2", "qwen3"] {
        for kv_dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::Int8] {
            let mut runner =
                runner_with_host(name, WeightDtype::Auto, kv_dtype, 16, NUM_HOST_BLOCKS);
            let new = || Sequence::new(0, BLOCK_SIZE, &prompt(40, 37));
            // In the very blocks that the first leaves.
            let new_other = || Sequence::new(0, BLOCK_SIZE, &prompt(60, 53));
            let expected = steps(&mut runner, &mut new(), 14);
            let expected_other = steps(&mut runner, &mut new_other(), 6);

            let (mut sequence, mut other) = (new(), new_other());
            let mut found = steps(&mut runner, &mut sequence, 5);
            let used = sequence.num_computed.div_ceil(BLOCK_SIZE);
            assert_eq!(used, 3);
            let host = [7, 0, 3];
            let out = Batch {
                swap_outs: pairs(&sequence.table[..used], &host),
                ..Batch::default()
            };
            let mut found_other = vec![advance(&mut runner, out, &mut other)];
            found_other.extend(steps(&mut runner, &mut other, 5));

            for (block, moved) in sequence.table.iter_mut().zip([1, 127, 50]) {
                *block = moved;
            }
            let back = Batch {
                swap_ins: pairs(&host, &sequence.table[..used]),
                ..Batch::default()
            };
            found.push(advance(&mut runner, back, &mut sequence));
            found.extend(steps(&mut runner, &mut sequence, 8));
            assert!(found == expected, "{name} {kv_dtype:?}");
            assert!(found_other == expected_other, "{name} {kv_dtype:?}: other");
        }
    }
}

#[test]
fn one_batch_swaps_out_then_in_then_copies_then_writes() {
    let mut runner = runner_with_host("llama", WeightDtype::Auto, KvDtype::F32, 16, 8);
    let new = |index| Sequence::new(index, BLOCK_SIZE, &prompt(40, 37 + index));
    let expected: Vec<_> = [0, 1]
        .map(|index| steps(&mut runner, &mut new(index), 8))
        .into();

    let (mut first, mut second) = (new(0), new(1));
    let mut found = [
        steps(&mut runner, &mut first, 3),
        steps(&mut runner, &mut second, 3),
    ];
    let out = Batch {
        swap_outs: pairs(&second.table[..3], &[0, 1, 2]),
        ..Batch::default()
    };
    found[0].push(advance(&mut runner, out, &mut first));
    // The second takes the blocks the first leaves, is copied from there, and goes on in the
    // copies.
    let left: Vec<u32> = first.table[..3].to_vec();
    let copied = [9, 10, 11];
    let all = Batch {
        swap_outs: pairs(&left, &[5, 6, 7]),
        swap_ins: pairs(&[0, 1, 2], &left),
        copies: pairs(&left, &copied),
        ..Batch::default()
    };
    second.table[..3].copy_from_slice(&copied);
    found[1].push(advance(&mut runner, all, &mut second));
    found[1].extend(steps(&mut runner, &mut second, 4));
    let back = Batch {
        swap_ins: pairs(&[5, 6, 7], &left),
        ..Batch::default()
    };
    found[0].push(advance(&mut runner, back, &mut first));
    found[0].extend(steps(&mut runner, &mut first, 3));
    assert!(found[..] == expected);
}

#[test]
fn a_batch_may_have_transfers_and_no_sequences() {
    let mut runner = runner_with_host("llama", WeightDtype::Auto, KvDtype::F32, 16, 8);
    let new = || Sequence::new(0, BLOCK_SIZE, &prompt(20, 37));
    let expected = steps(&mut runner, &mut new(), 4);
    let mut sequence = new();
    let mut found = steps(&mut runner, &mut sequence, 2);
    let empty = || Batch {
        row_offsets: vec![0],
        table_offsets: vec![0],
        ..Batch::default()
    };
    let out = Batch {
        swap_outs: pairs(&sequence.table[..2], &[1, 2]),
        ..empty()
    };
    assert!(run(&mut runner, &out).rows.is_empty());
    sequence.table[..2].copy_from_slice(&[5, 6]);
    let back = Batch {
        swap_ins: vec![(1, 5), (2, 6)],
        ..empty()
    };
    assert!(run(&mut runner, &back).rows.is_empty());
    found.extend(steps(&mut runner, &mut sequence, 2));
    assert!(found == expected);
}

#[test]
fn transfers_of_blocks_that_are_not_there_are_errors_and_move_nothing() {
    let mut with_host = runner_with_host("llama", WeightDtype::Auto, KvDtype::F32, 16, 8);
    let mut sequence = Sequence::new(0, BLOCK_SIZE, &prompt(20, 37));
    let expected = steps(&mut with_host, &mut sequence, 2);
    let used = sequence.table[0];
    // A good transfer first, over a block in use, which must not be done.
    type Change = fn(&mut Batch);
    let wrong: [(&str, Change); 6] = [
        ("swap_outs: entry 0 names block 128 of 128 device", |b| {
            b.swap_outs.push((128, 0));
        }),
        ("swap_outs: entry 0 names block 8 of 8 host", |b| {
            b.swap_outs.push((0, 8));
        }),
        ("swap_ins: entry 1 names block 8 of 8 host", |b| {
            b.swap_ins.push((8, 0));
        }),
        ("swap_ins: entry 1 names block 128 of 128 device", |b| {
            b.swap_ins.push((0, 128));
        }),
        ("copies: entry 0 names block 128 of 128 device", |b| {
            b.copies.push((128, 0));
        }),
        ("copies: entry 0 names block 4294967295 of 128", |b| {
            b.copies.push((0, u32::MAX));
        }),
    ];
    for (message, change) in wrong {
        let mut batch = Batch {
            swap_ins: vec![(0, used)],
            row_offsets: vec![0],
            table_offsets: vec![0],
            ..Batch::default()
        };
        change(&mut batch);
        assert!(with_host.check_transfers(&batch).is_err());
        let error = with_host.run(&batch, &mut Default::default()).unwrap_err();
        assert!(error.to_string().contains(message), "{message}: {error}");
    }
    let mut again = Sequence::new(1, BLOCK_SIZE, &prompt(20, 37));
    let mut uninterrupted = steps(&mut with_host, &mut again, 4);
    let last = uninterrupted.split_off(2);
    assert!(uninterrupted == expected);
    assert!(steps(&mut with_host, &mut sequence, 2) == last);

    let mut without_host = runner("llama", WeightDtype::Auto, KvDtype::F32, 16);
    for (swap_outs, swap_ins) in [(vec![(0, 0)], vec![]), (vec![], vec![(0, 0)])] {
        let batch = Batch {
            swap_outs,
            swap_ins,
            row_offsets: vec![0],
            table_offsets: vec![0],
            ..Batch::default()
        };
        let error = without_host.run(&batch, &mut Default::default());
        assert_eq!(error, Err(RunError::NoHostTier));
    }
}

#[test]
fn a_step_that_fails_has_done_its_transfers() {
    let mut runner = runner_with_host("llama", WeightDtype::Auto, KvDtype::F32, 16, 8);
    let new = || Sequence::new(0, BLOCK_SIZE, &prompt(20, 37));
    let expected = steps(&mut runner, &mut new(), 6);
    type Change = fn(&mut Batch);
    // Found by the batch's own check, by the plan, and by the embedding.
    let failures: [Change; 3] = [
        |b| b.slots[0] += 1,
        |b| {
            b.block_tables[0] = 1 << 20;
            b.slots[0] = 16 << 20;
        },
        |b| b.tokens[0] = 1 << 30,
    ];
    for failure in failures {
        let mut sequence = new();
        let mut found = steps(&mut runner, &mut sequence, 3);
        let mut other = Sequence::new(7, BLOCK_SIZE, &[1, 2]);
        for batch in [
            Batch {
                swap_outs: pairs(&sequence.table[..2], &[4, 5]),
                ..Batch::default()
            },
            Batch {
                swap_ins: vec![(4, 60), (5, 61)],
                copies: vec![(3, 4)],
                ..Batch::default()
            },
        ] {
            let mut batch = batch;
            other.num_computed = 0;
            push(&mut batch, &mut other, 1, BLOCK_SIZE, Ask::Greedy);
            failure(&mut batch);
            runner.run(&batch, &mut Default::default()).unwrap_err();
            // Whatever the host does not have now is lost.
            let mut over = Sequence::new(0, BLOCK_SIZE, &prompt(32, 5));
            steps(&mut runner, &mut over, 1);
        }
        sequence.table[..2].copy_from_slice(&[60, 61]);
        found.extend(steps(&mut runner, &mut sequence, 3));
        assert!(found == expected);
    }
}
