//! What the executor has to do to the memory of both tiers, and what is pinned until it has.

use alloc::vec::Vec;

use crate::{BlockId, HostBlockId, StepId, Tier};

/// Copy all slots of `src` to `dst`, both on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockCopy {
    /// The block to read.
    pub src: BlockId,
    /// The block to write.
    pub dst: BlockId,
}

/// Copy all slots of `src` on the device to `dst` on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SwapOut {
    /// The block to read.
    pub src: BlockId,
    /// The block to write.
    pub dst: HostBlockId,
}

/// Copy all slots of `src` on the host to `dst` on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SwapIn {
    /// The block to read.
    pub src: HostBlockId,
    /// The block to write.
    pub dst: BlockId,
}

/// The memory operations of one step, to be done before the step writes any slot.
///
/// First all of `swap_outs`, then all of `swap_ins`, then all of `copies`. Those of one list may
/// be done in any order and at once: no block is written by two of them, and none that one
/// writes is read by another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockOps {
    /// Blocks to copy to the host: swapped out, or evicted and kept there.
    pub swap_outs: Vec<SwapOut>,
    /// Blocks to copy back.
    pub swap_ins: Vec<SwapIn>,
    /// Blocks to copy on the device: copy-on-write.
    pub copies: Vec<BlockCopy>,
}

impl BlockOps {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.swap_outs.is_empty() && self.swap_ins.is_empty() && self.copies.is_empty()
    }

    fn clear(&mut self) {
        self.swap_outs.clear();
        self.swap_ins.clear();
        self.copies.clear();
    }
}

/// One entry of a [`BlockOps`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Transfer {
    Out { src: BlockId, dst: BlockId },
    In { src: BlockId, dst: BlockId },
    Copy { src: BlockId, dst: BlockId },
}

impl Transfer {
    /// The blocks that must not be reused before it is done: what it writes, and what it reads,
    /// but for the source of an `Out`. Those come first in a step, before anything writes to the
    /// device, so what is swapped out makes room in the very same step.
    pub(crate) fn pinned(self) -> impl Iterator<Item = (Tier, BlockId)> {
        let (src, dst) = match self {
            Self::Out { dst, .. } => (None, (Tier::Host, dst)),
            Self::In { src, dst } => (Some((Tier::Host, src)), (Tier::Device, dst)),
            Self::Copy { src, dst } => (Some((Tier::Device, src)), (Tier::Device, dst)),
        };
        src.into_iter().chain([dst])
    }

    /// The block of the device that it fills, if it does.
    pub(crate) fn fills(self) -> Option<BlockId> {
        match self {
            Self::Out { .. } => None,
            Self::In { dst, .. } | Self::Copy { dst, .. } => Some(dst),
        }
    }
}

#[derive(Debug)]
struct Step {
    id: StepId,
    transfers: Vec<Transfer>,
}

/// Transfers ordered and not completed, which pin blocks.
#[derive(Debug, Default)]
pub(crate) struct TransferLog {
    unsealed: Vec<Transfer>,
    in_flight: Vec<Step>,
    /// Emptied buffers of completed steps, so that a step allocates nothing.
    spare: Vec<Vec<Transfer>>,
}

impl TransferLog {
    /// Notes a transfer and returns its place among the unsealed ones.
    pub(crate) fn push(&mut self, transfer: Transfer) -> usize {
        self.unsealed.push(transfer);
        self.unsealed.len() - 1
    }

    pub(crate) fn unsealed(&self) -> &[Transfer] {
        &self.unsealed
    }

    /// Hands the transfers ordered since the last seal to `step`, and lists them in `ops`.
    #[track_caller]
    pub(crate) fn seal_into(&mut self, step: StepId, ops: &mut BlockOps) {
        assert!(
            self.in_flight.iter().all(|other| other.id != step),
            "step {} sealed twice without completing",
            step.0
        );
        ops.clear();
        for &transfer in &self.unsealed {
            match transfer {
                Transfer::Out { src, dst } => ops.swap_outs.push(SwapOut {
                    src,
                    dst: HostBlockId(dst.0),
                }),
                Transfer::In { src, dst } => ops.swap_ins.push(SwapIn {
                    src: HostBlockId(src.0),
                    dst,
                }),
                Transfer::Copy { src, dst } => ops.copies.push(BlockCopy { src, dst }),
            }
        }
        let emptied = self.spare.pop().unwrap_or_default();
        let transfers = core::mem::replace(&mut self.unsealed, emptied);
        self.in_flight.push(Step {
            id: step,
            transfers,
        });
    }

    /// Takes what `step` was handed; give it back with [`recycle`](Self::recycle).
    #[track_caller]
    pub(crate) fn complete(&mut self, step: StepId) -> Vec<Transfer> {
        let Some(place) = self.in_flight.iter().position(|other| other.id == step) else {
            panic!("complete of step {}, which is not in flight", step.0);
        };
        self.in_flight.remove(place).transfers
    }

    /// Keeps the list's room for a step to come.
    pub(crate) fn recycle(&mut self, mut transfers: Vec<Transfer>) {
        transfers.clear();
        self.spare.push(transfers);
    }

    /// Every transfer that pins blocks.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Transfer> {
        let in_flight = self.in_flight.iter().flat_map(|step| &step.transfers);
        self.unsealed.iter().chain(in_flight)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    #[test]
    fn one_operation_of_any_kind_is_something_to_do() {
        assert!(BlockOps::default().is_empty());
        let (device, host) = (BlockId(0), HostBlockId(0));
        let some = [
            BlockOps {
                swap_outs: vec![SwapOut {
                    src: device,
                    dst: host,
                }],
                ..BlockOps::default()
            },
            BlockOps {
                swap_ins: vec![SwapIn {
                    src: host,
                    dst: device,
                }],
                ..BlockOps::default()
            },
            BlockOps {
                copies: vec![BlockCopy {
                    src: device,
                    dst: BlockId(1),
                }],
                ..BlockOps::default()
            },
        ];
        assert!(some.iter().all(|ops| !ops.is_empty()));
    }
}
