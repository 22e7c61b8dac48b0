//! Preemption by swapping: two samples of one prompt make way for another request and come back,
//! still sharing what they shared.
//!
//! ```text
//! cargo run --example swap
//! ```

use pageloom_block_manager::{
    BlockManager, BlockOps, Config, Namespace, OutOfBlocks, StepId, TableId, Tier, TokenId,
};

const BLOCK_SIZE: usize = 4;

/// The memory of both tiers. A slot's key and value is one number.
struct Caches {
    device: Vec<f32>,
    host: Vec<f32>,
}

impl Caches {
    /// The slots of a block.
    fn slots(block: usize) -> std::ops::Range<usize> {
        block * BLOCK_SIZE..(block + 1) * BLOCK_SIZE
    }

    /// Does the memory operations of a step, list by list in this order.
    fn run(&mut self, ops: &BlockOps) {
        for swap in &ops.swap_outs {
            let (src, dst) = (swap.src.index(), swap.dst.index());
            self.host[Self::slots(dst)].copy_from_slice(&self.device[Self::slots(src)]);
        }
        for swap in &ops.swap_ins {
            let (src, dst) = (swap.src.index(), swap.dst.index());
            self.device[Self::slots(dst)].copy_from_slice(&self.host[Self::slots(src)]);
        }
        for copy in &ops.copies {
            let dst = copy.dst.index() * BLOCK_SIZE;
            self.device.copy_within(Self::slots(copy.src.index()), dst);
        }
    }
}

struct Engine {
    blocks: BlockManager,
    caches: Caches,
    num_steps: u64,
}

impl Engine {
    /// Does what was ordered, as the beginning of a step.
    fn begin_step(&mut self) -> BlockOps {
        let step = StepId(self.num_steps);
        self.num_steps += 1;
        let ops = self.blocks.seal(step);
        self.caches.run(&ops);
        self.blocks.complete(step);
        ops
    }

    /// Computes `tokens` at the end of the table.
    fn forward(&mut self, t: TableId, tokens: &[TokenId]) -> Result<(), OutOfBlocks> {
        let start = self.blocks.num_tokens(t);
        self.blocks.reserve(t, tokens.len())?;
        self.begin_step();
        for (position, &token) in (start..).zip(tokens) {
            self.caches.device[self.blocks.slot(t, position)] = token as f32;
        }
        self.blocks.commit(t, tokens);
        Ok(())
    }

    /// What attention would read for the table.
    fn read(&self, t: TableId) -> Vec<f32> {
        let positions = 0..self.blocks.num_tokens(t);
        let slot = |i| self.caches.device[self.blocks.slot(t, i)];
        positions.map(slot).collect()
    }
}

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = Config {
        block_size: BLOCK_SIZE,
        num_blocks: 4,
        num_host_blocks: 4,
        ..Config::default()
    };
    let mut engine = Engine {
        caches: Caches {
            device: vec![0.0; config.num_blocks * BLOCK_SIZE],
            host: vec![0.0; config.num_host_blocks * BLOCK_SIZE],
        },
        blocks: BlockManager::new(config)?,
        num_steps: 0,
    };

    // Two samples of a prompt share its full block and differ in the second one.
    let (a, _) = engine.blocks.open(&[], Namespace(0));
    engine.forward(a, &[1, 2, 3, 4, 5])?;
    let b = engine.blocks.fork(a);
    engine.forward(a, &[60])?;
    engine.forward(b, &[70])?;
    assert_eq!(engine.blocks.stats().device.num_referenced, 3);

    // A request that needs the whole device: the pair makes way, both or neither.
    let urgent: Vec<TokenId> = (100..116).collect();
    let no_room = engine.blocks.admit(&urgent, urgent.len(), Namespace(0), 0);
    assert!(no_room.is_err());
    engine.blocks.swap_out(&[a, b])?;
    assert_eq!(engine.blocks.tier(a), Tier::Host);
    // Their blocks are free at once: a step copies them out before it writes anything.
    let (c, _) = engine
        .blocks
        .admit(&urgent, urgent.len(), Namespace(0), 0)?;
    assert_eq!(engine.begin_step().swap_outs.len(), 3);
    engine.forward(c, &urgent)?;
    engine.blocks.release(c);

    // They come back as they were, in three blocks and not four.
    engine.blocks.swap_in(&[a, b], 0)?;
    assert_eq!(engine.begin_step().swap_ins.len(), 3);
    assert_eq!(engine.blocks.blocks(a)[0], engine.blocks.blocks(b)[0]);
    assert_eq!(engine.read(a), [1.0, 2.0, 3.0, 4.0, 5.0, 60.0]);
    assert_eq!(engine.read(b), [1.0, 2.0, 3.0, 4.0, 5.0, 70.0]);
    println!("{:#?}", engine.blocks.stats());
    Ok(())
}
