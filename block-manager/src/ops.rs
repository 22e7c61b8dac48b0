//! What the executor has to do to the cache's memory, and what is pinned until it has.

use alloc::vec::Vec;

use crate::{BlockId, StepId, pool::Pool};

/// Copy all slots of `src` to `dst`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockCopy {
    /// The block to read.
    pub src: BlockId,
    /// The block to write.
    pub dst: BlockId,
}

/// The memory operations of one step, to be done before the step writes any slot.
///
/// They may be done in any order and at once: no block is written by two of them, and none that
/// one writes is read by another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockOps {
    /// Blocks to copy on the device.
    pub copies: Vec<BlockCopy>,
}

impl BlockOps {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.copies.is_empty()
    }
}

#[derive(Debug)]
struct Step {
    id: StepId,
    copies: Vec<BlockCopy>,
}

/// Copies ordered and not completed. Each pins its source and its destination.
#[derive(Debug, Default)]
pub(crate) struct CopyLog {
    unsealed: Vec<BlockCopy>,
    in_flight: Vec<Step>,
    /// Emptied buffers of completed steps, so that a step allocates nothing.
    spare: Vec<Vec<BlockCopy>>,
}

impl CopyLog {
    /// Orders a copy of `src` into `dst`, both held by a table.
    pub(crate) fn push(&mut self, pool: &mut Pool, src: BlockId, dst: BlockId) {
        // Copies of a step have no order among them: a block that is itself still to be copied
        // is read at its origin. The origin is pinned, so its committed slots keep their contents.
        let src = match pool.unsealed_copy(src) {
            Some(place) => self.unsealed[place].src,
            None => src,
        };
        pool.pin(src);
        pool.pin(dst);
        pool.set_unsealed_copy(dst, Some(self.unsealed.len()));
        self.unsealed.push(BlockCopy { src, dst });
    }

    /// Hands the copies ordered since the last seal to `step`.
    pub(crate) fn seal_into(&mut self, pool: &mut Pool, step: StepId, ops: &mut BlockOps) {
        assert!(
            self.in_flight.iter().all(|other| other.id != step),
            "step {} sealed twice without completing",
            step.0
        );
        for copy in &self.unsealed {
            pool.set_unsealed_copy(copy.dst, None);
        }
        ops.copies.clear();
        ops.copies.extend_from_slice(&self.unsealed);
        let emptied = self.spare.pop().unwrap_or_default();
        let copies = core::mem::replace(&mut self.unsealed, emptied);
        self.in_flight.push(Step { id: step, copies });
    }

    /// Lets go of what `step` pinned.
    pub(crate) fn complete(&mut self, pool: &mut Pool, step: StepId) {
        let Some(place) = self.in_flight.iter().position(|other| other.id == step) else {
            panic!("complete of step {}, which is not in flight", step.0);
        };
        let mut copies = self.in_flight.remove(place).copies;
        for copy in copies.drain(..) {
            pool.unpin(copy.src);
            pool.unpin(copy.dst);
        }
        self.spare.push(copies);
    }

    /// Every copy that pins its endpoints.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &BlockCopy> {
        let in_flight = self.in_flight.iter().flat_map(|step| &step.copies);
        self.unsealed.iter().chain(in_flight)
    }
}
