//! From the scheduler's plan to the executor's flat arrays.

use std::iter;

use pageloom_model_runner::{Batch, OutputRow, Want};
use pageloom_scheduler::{PlannedSeq, Scheduler, StepPlan};

use crate::{RequestId, sequence::SequenceState};

/// Fills `batch` with what `plan` says, keeping the room of its buffers.
///
/// `states` are the engine's sequences by [`SeqId::index`](pageloom_scheduler::SeqId::index), and
/// `to_fork` gives those that are to be forks of a request's first.
pub(crate) fn fill<'a>(
    batch: &mut Batch,
    plan: &StepPlan,
    scheduler: &Scheduler,
    states: &[Option<SequenceState>],
    to_fork: impl Fn(RequestId) -> &'a [SequenceState],
) {
    fill_transfers(batch, plan);
    let block_size = scheduler.block_manager().config().block_size;
    for planned in &plan.seqs {
        let state = states[planned.id.index()].as_ref();
        let state = state.expect("a planned sequence is alive");
        add_tokens(batch, planned, scheduler, block_size);
        add_scores(batch, planned, scheduler, state);
        if planned.sample {
            for state in iter::once(state).chain(to_fork(state.request)) {
                add_samples(batch, planned, scheduler, state);
            }
        }
    }
}

/// Fills `batch` with what `plan` moves, and no sequence.
pub(crate) fn fill_transfers(batch: &mut Batch, plan: &StepPlan) {
    batch.clear();
    batch.row_offsets.push(0);
    batch.table_offsets.push(0);
    batch.step = plan.step.0;
    let outs = plan.ops.swap_outs.iter();
    batch
        .swap_outs
        .extend(outs.map(|out| (u32::from(out.src), u32::from(out.dst))));
    let ins = plan.ops.swap_ins.iter();
    batch
        .swap_ins
        .extend(ins.map(|swap| (u32::from(swap.src), u32::from(swap.dst))));
    let copies = plan.ops.copies.iter();
    batch
        .copies
        .extend(copies.map(|copy| (u32::from(copy.src), u32::from(copy.dst))));
}

fn add_tokens(batch: &mut Batch, planned: &PlannedSeq, scheduler: &Scheduler, block_size: usize) {
    let tokens = scheduler.tokens(planned.id).expect("alive");
    let blocks = scheduler.blocks(planned.id).expect("running");
    let positions = planned.positions.clone();
    let own = positions.start..positions.end - planned.num_drafts;
    batch.tokens.extend_from_slice(&tokens[own]);
    batch.tokens.extend_from_slice(scheduler.drafts(planned));
    batch.positions.extend(positions.clone().map(index));
    batch.slots.extend(positions.clone().map(|position| {
        index(blocks[position / block_size].index() * block_size + position % block_size)
    }));
    batch.row_offsets.push(index(batch.tokens.len()));
    batch.context_lens.push(index(positions.end));
    // Blocks reserved for later chunks are not read yet.
    let num_used = positions.end.div_ceil(block_size);
    batch
        .block_tables
        .extend(blocks[..num_used].iter().map(|&block| u32::from(block)));
    batch.table_offsets.push(index(batch.block_tables.len()));
}

fn add_scores(
    batch: &mut Batch,
    planned: &PlannedSeq,
    scheduler: &Scheduler,
    state: &SequenceState,
) {
    let tokens = scheduler.tokens(planned.id).expect("alive");
    let first_row = batch.tokens.len() - planned.positions.len();
    for position in planned.scores.clone() {
        batch.outputs.push(OutputRow {
            row: index(first_row + position - planned.positions.start),
            want: Want::Score {
                token: tokens[position + 1],
                top: state.num_top_prompt_logprobs,
            },
        });
    }
}

/// Has the logits of the last token's row, and of each draft's, drawn from or expanded as this
/// sequence wants it.
fn add_samples(
    batch: &mut Batch,
    planned: &PlannedSeq,
    scheduler: &Scheduler,
    state: &SequenceState,
) {
    let tokens = scheduler.tokens(planned.id).expect("alive");
    let drafts = scheduler.drafts(planned);
    let num_prompt_tokens = index(state.num_prompt_tokens);
    for num_before in 0..=drafts.len() {
        // As if the drafts before it had been drawn.
        let history = match state.params.needs_history() {
            true => [tokens, &drafts[..num_before]].concat(),
            false => Vec::new(),
        };
        let params = state.params.clone();
        let want = match state.num_candidates {
            0 => Want::Sample {
                params,
                num_prompt_tokens,
                history,
            },
            num_candidates => Want::Expand {
                params,
                num_candidates,
                num_prompt_tokens,
                history,
            },
        };
        batch.outputs.push(OutputRow {
            row: index(batch.tokens.len() - drafts.len() + num_before - 1),
            want,
        });
    }
}

/// Rows, positions and slots are 32 bits wide in a batch.
fn index(value: usize) -> u32 {
    u32::try_from(value).expect("the configuration keeps slots and context below 2^32")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pageloom_model_runner::SamplingParams;
    use pageloom_scheduler::{BlockManager, Config, NewSequence, SeqResult};

    use super::*;
    use crate::{Request, RequestId, sequence::Shared, stats::SequenceTimes, text::StopStrings};

    fn add(scheduler: &mut Scheduler, states: &mut Vec<Option<SequenceState>>, new: NewSequence) {
        let sampling = SamplingParams {
            frequency_penalty: 1.0,
            ..SamplingParams::default()
        };
        let request = Request {
            prompt_logprobs: Some(4),
            ..Request::new(new.prompt.clone())
        };
        let shared = Shared {
            own_stop_tokens: [].into(),
            max_tokens: new.max_tokens,
            times: SequenceTimes::new(Duration::ZERO),
            stop_strings: StopStrings::new(Vec::new(), false),
            num_candidates: 0,
        };
        let id = scheduler.add(new, Duration::ZERO).expect("fits");
        let place = (RequestId(0), 0);
        states.push(Some(SequenceState::new(
            id, place, &request, sampling, &shared,
        )));
    }

    #[test]
    fn a_decode_beside_a_scored_chunk_gives_these_arrays() {
        let blocks = pageloom_block_manager::Config {
            block_size: 4,
            num_blocks: 8,
            ..Default::default()
        };
        let config = Config {
            max_num_seqs: 2,
            max_num_batched_tokens: 6,
            ..Config::default()
        };
        let blocks = BlockManager::new(blocks).expect("valid");
        let mut scheduler = Scheduler::new(config, blocks).expect("valid");
        let mut states = Vec::new();
        let first = NewSequence {
            prompt: vec![10, 11, 12, 13],
            max_tokens: 3,
            ..NewSequence::default()
        };
        add(&mut scheduler, &mut states, first);
        let step = scheduler.schedule().expect("work").step;
        scheduler.update(step, &[SeqResult::Token(99)], &mut Vec::new());
        let second = NewSequence {
            prompt: (20..30).collect(),
            max_tokens: 3,
            score_prompt: true,
            ..NewSequence::default()
        };
        add(&mut scheduler, &mut states, second);
        scheduler.schedule().expect("work");

        let mut batch = Batch::default();
        batch.outputs.push(OutputRow {
            row: 7,
            want: Want::Score { token: 0, top: 0 },
        });
        let plan = scheduler.plan().expect("planned");
        fill(&mut batch, plan, &scheduler, &states, |_| &[]);
        assert_eq!(batch.step, 1);
        assert_eq!(batch.tokens, [99, 20, 21, 22, 23, 24]);
        assert_eq!(batch.positions, [4, 0, 1, 2, 3, 4]);
        assert_eq!(batch.row_offsets, [0, 1, 6]);
        assert_eq!(batch.context_lens, [5, 5]);
        assert_eq!(
            batch.table_offsets,
            [0, 2, 4],
            "the third block is not used yet"
        );
        for (row, &slot) in batch.slots.iter().enumerate() {
            let seq = usize::from(row > 0);
            let position = batch.positions[row];
            let block = batch.block_tables[2 * seq + position as usize / 4];
            assert_eq!(slot, block * 4 + position % 4, "row {row}");
        }
        assert_eq!(batch.outputs.len(), 1 + 5);
        let Want::Sample {
            num_prompt_tokens,
            history,
            ..
        } = &batch.outputs[0].want
        else {
            panic!("{:?}", batch.outputs[0]);
        };
        assert_eq!(
            (*num_prompt_tokens, &history[..]),
            (4, &[10, 11, 12, 13, 99][..])
        );
        for (i, output) in batch.outputs[1..].iter().enumerate() {
            let Want::Score { token, top } = output.want else {
                panic!("{output:?}");
            };
            assert_eq!((output.row, token, top), (1 + i as u32, 21 + i as u32, 4));
        }
    }
}
