//! From the scheduler's plan to the executor's flat arrays.

use pageloom_model_runner::{Batch, OutputRow, Want};
use pageloom_scheduler::{PlannedSeq, Scheduler, StepPlan};

use crate::sequence::SequenceState;

/// Fills `batch` with what `plan` says, keeping the room of its buffers.
///
/// `states` are the engine's sequences by [`SeqId::index`](pageloom_scheduler::SeqId::index).
pub(crate) fn fill(
    batch: &mut Batch,
    plan: &StepPlan,
    scheduler: &Scheduler,
    states: &[Option<SequenceState>],
) {
    clear(batch);
    batch.step = plan.step.0;
    let copies = plan.ops.copies.iter();
    batch
        .copies
        .extend(copies.map(|copy| (u32::from(copy.src), u32::from(copy.dst))));
    let block_size = scheduler.block_manager().config().block_size;
    for planned in &plan.seqs {
        let state = states[planned.id.index()].as_ref();
        let state = state.expect("a planned sequence is alive");
        add_tokens(batch, planned, scheduler, block_size);
        add_outputs(batch, planned, scheduler, state);
    }
}

fn clear(batch: &mut Batch) {
    batch.copies.clear();
    batch.tokens.clear();
    batch.positions.clear();
    batch.slots.clear();
    batch.row_offsets.clear();
    batch.row_offsets.push(0);
    batch.context_lens.clear();
    batch.block_tables.clear();
    batch.table_offsets.clear();
    batch.table_offsets.push(0);
    batch.outputs.clear();
}

fn add_tokens(batch: &mut Batch, planned: &PlannedSeq, scheduler: &Scheduler, block_size: usize) {
    let tokens = scheduler.tokens(planned.id).expect("alive");
    let blocks = scheduler.blocks(planned.id).expect("running");
    let positions = planned.positions.clone();
    batch.tokens.extend_from_slice(&tokens[positions.clone()]);
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

fn add_outputs(
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
    if planned.sample {
        let history = match state.params.needs_history() {
            true => tokens.to_vec(),
            false => Vec::new(),
        };
        batch.outputs.push(OutputRow {
            row: index(batch.tokens.len() - 1),
            want: Want::Sample {
                params: state.params.clone(),
                num_prompt_tokens: index(state.num_prompt_tokens),
                history,
            },
        });
    }
}

/// Rows, positions and slots are 32 bits wide in a batch.
fn index(value: usize) -> u32 {
    u32::try_from(value).expect("the configuration keeps slots and context below 2^32")
}
