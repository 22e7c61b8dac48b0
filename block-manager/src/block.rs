//! What is known of one physical block.

use crate::index::Identity;

/// Neither linked nor filled by an unsealed transfer.
pub(crate) const NONE: u32 = u32::MAX;

/// One physical block. 40 bytes; the budget is 64 with the index's share.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// Tables that hold it.
    pub(crate) refs: u32,
    /// Transfers not yet completed that read or write it.
    pub(crate) pins: u32,
    pub(crate) prev: u32,
    /// Linked blocks: the next one. Pinned blocks are never linked, so for them it is the place
    /// of the unsealed transfer that fills them, if there is one.
    pub(crate) next: u32,
    /// The fields of its [`Identity`], side by side because nested they would take 8 bytes more.
    /// `serial` is 0 while the block is not published, and then the others mean nothing.
    serial: u64,
    parent: u64,
    hash: u32,
    is_root: bool,
    /// Found by a prompt since it was published, or last lost protection. While the block is
    /// linked: whether it is protected.
    pub(crate) reused: bool,
}

impl Block {
    /// A block that holds nothing, between two others of the list.
    pub(crate) fn free(prev: u32, next: u32) -> Self {
        Self {
            refs: 0,
            pins: 0,
            prev,
            next,
            serial: 0,
            parent: 0,
            hash: 0,
            is_root: false,
            reused: false,
        }
    }

    #[inline]
    pub(crate) fn is_published(&self) -> bool {
        self.serial != 0
    }

    /// The name of what it holds, while it is published; else 0.
    #[inline]
    pub(crate) fn serial(&self) -> u64 {
        self.serial
    }

    /// What the block is known by, while it is published.
    #[inline]
    pub(crate) fn identity(&self) -> Identity {
        Identity {
            serial: self.serial,
            parent: self.parent,
            hash: self.hash,
            is_root: self.is_root,
        }
    }

    #[inline]
    pub(crate) fn set_identity(&mut self, identity: Identity) {
        self.serial = identity.serial;
        self.parent = identity.parent;
        self.hash = identity.hash;
        self.is_root = identity.is_root;
        self.reused = false;
    }

    #[inline]
    pub(crate) fn forget_identity(&mut self) {
        self.serial = 0;
    }

    /// The place of the unsealed transfer that fills the block, which is held, if one does.
    #[inline]
    pub(crate) fn unsealed_write(&self) -> Option<usize> {
        debug_assert!(!self.is_available(), "linked: `next` means something else");
        (self.next != NONE).then_some(self.next as usize)
    }

    /// The rule that joins sharing and caching.
    #[inline]
    pub(crate) fn is_writable(&self) -> bool {
        self.refs == 1 && !self.is_published()
    }

    /// Whether neither a table nor a transfer holds it.
    #[inline]
    pub(crate) fn is_available(&self) -> bool {
        self.refs == 0 && self.pins == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_costs_forty_bytes() {
        assert_eq!(size_of::<Block>(), 40);
    }
}
