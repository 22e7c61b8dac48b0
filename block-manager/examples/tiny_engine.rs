//! An engine loop over a `Vec<f32>`: prefill, fork, copy-on-write, and a prefix hit.

use pageloom_block_manager::{
    BlockManager, Config, Namespace, OutOfBlocks, StepId, TableId, TokenId,
};

/// A model in miniature: a token's key and value is one number, and attention adds them up.
struct Engine {
    blocks: BlockManager,
    cache: Vec<f32>,
    num_steps: u64,
}

impl Engine {
    /// Computes `tokens` at the end of the table and returns the token that follows them.
    fn forward(&mut self, t: TableId, tokens: &[TokenId]) -> Result<TokenId, OutOfBlocks> {
        let start = self.blocks.num_tokens(t);
        self.blocks.reserve(t, tokens.len())?;

        let step = StepId(self.num_steps);
        self.num_steps += 1;
        let size = self.blocks.config().block_size;
        for copy in self.blocks.seal(step).copies {
            let (src, dst) = (copy.src.index() * size, copy.dst.index() * size);
            self.cache.copy_within(src..src + size, dst);
        }
        self.blocks.complete(step);

        for (position, &token) in (start..).zip(tokens) {
            self.cache[self.blocks.slot(t, position)] = token as f32;
        }
        self.blocks.commit(t, tokens);

        let positions = 0..self.blocks.num_tokens(t);
        let sum: f32 = positions.map(|i| self.cache[self.blocks.slot(t, i)]).sum();
        Ok(sum as TokenId)
    }
}

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = Config {
        block_size: 4,
        num_blocks: 8,
        ..Config::default()
    };
    let mut engine = Engine {
        cache: vec![0.0; config.num_blocks * config.block_size],
        blocks: BlockManager::new(config)?,
        num_steps: 0,
    };

    // Prefill: seven tokens in two blocks.
    let prompt = [1, 2, 3, 4, 5, 6, 7];
    let (a, num_cached) = engine.blocks.open(&prompt, Namespace(0));
    assert_eq!(num_cached, 0);
    assert_eq!(engine.forward(a, &prompt)?, 28);

    // Two samples of one prompt share both blocks until one of them writes.
    let b = engine.blocks.fork(a);
    assert_eq!(engine.forward(a, &[100])?, 128);
    assert_eq!(engine.forward(b, &[200])?, 228);
    assert_eq!(engine.blocks.stats().num_copies, 1);
    assert_eq!(engine.blocks.stats().device.num_referenced, 3);
    engine.blocks.release(a);
    engine.blocks.release(b);

    // The prompt once more: its full block is still there.
    let (c, num_cached) = engine.blocks.open(&prompt, Namespace(0));
    assert_eq!(num_cached, 4);
    assert_eq!(engine.forward(c, &prompt[num_cached..])?, 28);
    engine.blocks.release(c);
    assert_eq!(engine.blocks.stats().device.num_referenced, 0);
    Ok(())
}
