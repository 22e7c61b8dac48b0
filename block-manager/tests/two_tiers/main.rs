//! The host tier through the public API: swapping groups, demotion and promotion, events,
//! watermarks, windows, wrong use.

mod keeping_what_is_evicted;
mod swapping;
mod telling;
mod watermarks;
mod windows;
mod wrong_use_panics;

use pageloom_block_manager::{
    BlockId, BlockManager, BlockOps, CacheEvent, Config, ContentId, Namespace, OutOfBlocks, Parent,
    StepId, TableId, Tier, TokenId,
};

const NS: Namespace = Namespace(0);

/// Blocks of four tokens.
fn manager(num_blocks: usize, num_host_blocks: usize) -> BlockManager {
    BlockManager::new(Config {
        block_size: 4,
        num_blocks,
        num_host_blocks,
        events: true,
        ..Config::default()
    })
    .unwrap()
}

fn tokens(range: std::ops::Range<u32>) -> Vec<TokenId> {
    range.collect()
}

/// Has a step done that does all that was ordered.
fn step(m: &mut BlockManager) -> BlockOps {
    let ops = m.seal(StepId(u64::MAX));
    m.complete(StepId(u64::MAX));
    m.check().unwrap();
    ops
}

/// One step that computes `tokens` at the end of the table.
fn append(m: &mut BlockManager, t: TableId, tokens: &[TokenId]) {
    m.reserve(t, tokens.len()).unwrap();
    step(m);
    m.commit(t, tokens);
    m.check().unwrap();
}

/// Opens a table for `tokens`, computes what is not cached, and commits it.
fn prefill(m: &mut BlockManager, tokens: &[TokenId], ns: Namespace) -> (TableId, usize) {
    let (t, hit) = m.open(tokens, ns);
    append(m, t, &tokens[hit..]);
    (t, hit)
}

/// Takes `num_blocks` blocks of the device and gives them back empty.
fn overwrite(m: &mut BlockManager, num_blocks: usize) {
    let (t, _) = m.open(&[], Namespace(u64::MAX));
    m.reserve(t, 4 * num_blocks).unwrap();
    step(m);
    m.release(t);
    m.check().unwrap();
}

fn references(m: &BlockManager, t: TableId) -> Vec<usize> {
    let blocks = m.blocks(t).iter();
    blocks.map(|&block| m.num_references(block)).collect()
}

#[derive(Debug, PartialEq)]
enum Event {
    Stored(Tier, ContentId, Parent, Vec<TokenId>),
    Removed(Tier, ContentId),
    Cleared,
}

fn events(m: &mut BlockManager) -> Vec<Event> {
    let mut events = Vec::new();
    m.drain_events(|event| {
        events.push(match event {
            CacheEvent::Stored {
                tier,
                content,
                parent,
                tokens,
            } => Event::Stored(tier, content, parent, tokens.to_vec()),
            CacheEvent::Removed { tier, content } => Event::Removed(tier, content),
            CacheEvent::Cleared => Event::Cleared,
            _ => panic!("{event:?} is new"),
        });
    });
    events
}
