//! What a router follows to know which prefixes this cache holds.

use alloc::vec::Vec;

use crate::{Namespace, Tier, TokenId, index::Identity};

/// Names the contents of a published block: its tokens and all before them, in their namespace.
///
/// Unique over the manager's life; the copy of a block in the other tier has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentId(u64);

impl ContentId {
    /// The number, for a wire format. Never 0.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

/// What a block's tokens follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Parent {
    /// Nothing: they are the first of a sequence in this namespace.
    Root(Namespace),
    /// Those of another block, stored before it.
    Content(ContentId),
}

/// One change of what [`open`](crate::BlockManager::open) can find.
///
/// A block is found only while every block before it is stored too, in either tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CacheEvent<'a> {
    /// A block became findable: published, swapped out, or kept on the host when evicted.
    Stored {
        /// Where.
        tier: Tier,
        /// What it holds.
        content: ContentId,
        /// What its tokens follow.
        parent: Parent,
        /// Its tokens, one block of them.
        tokens: &'a [TokenId],
    },
    /// A block is not findable in this tier any more.
    Removed {
        /// Where it was.
        tier: Tier,
        /// What it held.
        content: ContentId,
    },
    /// No block is findable any more, in either tier.
    Cleared,
}

#[derive(Clone, Copy, Debug)]
enum Record {
    Stored { tier: Tier, identity: Identity },
    Removed { tier: Tier, serial: u64 },
    Cleared,
}

/// Events not yet read.
#[derive(Debug, Default)]
pub(crate) struct EventLog {
    records: Vec<Record>,
    /// One block of tokens for each `Stored`, in order.
    tokens: Vec<TokenId>,
}

impl EventLog {
    pub(crate) fn stored(&mut self, tier: Tier, identity: Identity, tokens: &[TokenId]) {
        self.records.push(Record::Stored { tier, identity });
        self.tokens.extend_from_slice(tokens);
    }

    pub(crate) fn removed(&mut self, tier: Tier, serial: u64) {
        self.records.push(Record::Removed { tier, serial });
    }

    pub(crate) fn cleared(&mut self) {
        self.records.push(Record::Cleared);
    }

    /// Shows each event once, oldest first.
    pub(crate) fn drain(&mut self, block_size: usize, mut read: impl FnMut(CacheEvent<'_>)) {
        let mut blocks = self.tokens.chunks_exact(block_size);
        for record in self.records.drain(..) {
            read(match record {
                Record::Stored { tier, identity } => CacheEvent::Stored {
                    tier,
                    content: ContentId(identity.serial),
                    parent: if identity.is_root {
                        Parent::Root(Namespace(identity.parent))
                    } else {
                        Parent::Content(ContentId(identity.parent))
                    },
                    tokens: blocks.next().expect("tokens were noted with the event"),
                },
                Record::Removed { tier, serial } => CacheEvent::Removed {
                    tier,
                    content: ContentId(serial),
                },
                Record::Cleared => CacheEvent::Cleared,
            });
        }
        self.tokens.clear();
    }
}
