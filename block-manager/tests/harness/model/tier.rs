//! One tier of the model: the blocks nobody holds, and what is published.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pageloom_block_manager::{Eviction, Namespace, OutOfBlocks, Tier, TokenId};

/// What a published block holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) ns: Namespace,
    /// All tokens up to the block's end.
    pub(crate) prefix: Vec<TokenId>,
    /// Counts publications; the same contents have the same number in both tiers.
    pub(crate) number: u64,
    /// That of the block before it, unless it is the first.
    pub(crate) parent: Option<u64>,
}

/// Blocks nobody holds. Which of them is taken next is said here and nowhere else.
pub(super) struct Idle {
    /// Hold nothing; the one to take next first.
    free: VecDeque<usize>,
    /// Published; the one to evict next first.
    cached: VecDeque<usize>,
    /// Published and asked for again; evicted after the others.
    protected: VecDeque<usize>,
    most_protected: usize,
    /// Blocks that will be protected when nobody holds them, or are.
    asked_again: BTreeSet<usize>,
}

impl Idle {
    fn new(num_blocks: usize, eviction: Eviction) -> Self {
        Self {
            free: (0..num_blocks).collect(),
            cached: VecDeque::new(),
            protected: VecDeque::new(),
            most_protected: match eviction {
                Eviction::SegmentedLru => num_blocks / 8,
                _ => 0,
            },
            asked_again: BTreeSet::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.free.len() + self.num_cached()
    }

    pub(super) fn num_cached(&self) -> usize {
        self.cached.len() + self.protected.len()
    }

    pub(super) fn contains(&self, block: usize) -> bool {
        let mut all = self.free.iter().chain(&self.cached).chain(&self.protected);
        all.any(|&idle| idle == block)
    }

    /// Takes a free block, else the one released first of those not protected, else of those
    /// protected.
    fn take_next(&mut self) -> Option<usize> {
        let lists = [&mut self.free, &mut self.cached, &mut self.protected];
        lists.into_iter().find_map(VecDeque::pop_front)
    }

    /// Nobody holds `block` any more.
    fn add(&mut self, block: usize, is_published: bool) {
        if !is_published {
            self.free.push_front(block);
        } else if !self.asked_again.contains(&block) {
            self.cached.push_back(block);
        } else {
            self.protected.push_back(block);
            if self.protected.len() > self.most_protected {
                let oldest = self.protected.pop_front().expect("one was pushed");
                self.asked_again.remove(&oldest);
                self.cached.push_back(oldest);
            }
        }
    }

    /// Somebody holds `block` again, or does already.
    pub(super) fn remove(&mut self, block: usize) {
        for list in [&mut self.free, &mut self.cached, &mut self.protected] {
            list.retain(|&idle| idle != block);
        }
    }

    /// The contents of `block` are to be kept, though in this copy nobody asked for them.
    pub(super) fn touch(&mut self, block: usize) {
        if self.contains(block) {
            self.remove(block);
            self.add(block, true);
        }
    }

    fn last_cached(&self) -> Option<usize> {
        self.protected.back().or(self.cached.back()).copied()
    }
}

pub(super) struct Memory {
    tier: Tier,
    pub(super) num_blocks: usize,
    pub(super) idle: Idle,
    pub(super) published: BTreeMap<usize, Contents>,
    pub(super) evictions: u64,
}

impl Memory {
    pub(super) fn new(tier: Tier, num_blocks: usize, eviction: Eviction) -> Self {
        Self {
            tier,
            num_blocks,
            idle: Idle::new(num_blocks, eviction),
            published: BTreeMap::new(),
            evictions: 0,
        }
    }

    pub(super) fn check_available(&self, needed: usize, keep: usize) -> Result<(), OutOfBlocks> {
        let available = self.idle.len();
        if needed + keep <= available {
            return Ok(());
        }
        Err(OutOfBlocks {
            tier: self.tier,
            needed,
            available: available.saturating_sub(keep),
        })
    }

    /// The block that holds `prefix` after the contents numbered `parent`.
    pub(super) fn find(
        &self,
        ns: Namespace,
        prefix: &[TokenId],
        parent: Option<u64>,
    ) -> Option<usize> {
        let same = |c: &Contents| c.ns == ns && c.prefix == prefix && c.parent == parent;
        let found = self.published.iter().find(|(_, contents)| same(contents));
        found.map(|(&block, _)| block)
    }

    /// The block that holds the contents with this number.
    pub(super) fn numbered(&self, number: u64) -> Option<usize> {
        let mut all = self.published.iter();
        let found = all.find(|(_, contents)| contents.number == number);
        found.map(|(&block, _)| block)
    }

    /// Publishes what `block` holds, which prompts have `asked_again` for in the other tier or not.
    pub(super) fn publish(&mut self, block: usize, contents: Contents, asked_again: bool) {
        self.published.insert(block, contents);
        self.idle.asked_again.remove(&block);
        if asked_again {
            self.idle.asked_again.insert(block);
        }
    }

    /// A prompt found `block`, and holds it from now on.
    pub(super) fn hit(&mut self, block: usize) {
        self.idle.remove(block);
        self.idle.asked_again.insert(block);
    }

    /// What `block` holds if it is published, and whether it was asked for again.
    pub(super) fn contents(&self, block: usize) -> Option<(Contents, bool)> {
        let contents = self.published.get(&block)?.clone();
        Some((contents, self.idle.asked_again.contains(&block)))
    }

    /// Takes an idle block; with it what it held and will not any more.
    pub(super) fn take(&mut self) -> (usize, Option<(Contents, bool)>) {
        let block = self.idle.take_next().expect("availability was checked");
        let evicted = self.contents(block);
        self.published.remove(&block);
        self.evictions += u64::from(evicted.is_some());
        (block, evicted)
    }

    /// Puts a block that nobody holds any more among the idle ones.
    pub(super) fn add_idle(&mut self, block: usize) {
        assert!(!self.idle.contains(block), "let go twice");
        self.idle.add(block, self.published.contains_key(&block));
    }

    /// Frees every cached block, the one evicted last first.
    pub(super) fn reset(&mut self) -> usize {
        let num_cached = self.idle.num_cached();
        while let Some(block) = self.idle.last_cached() {
            self.idle.remove(block);
            self.published.remove(&block);
            self.add_idle(block);
        }
        num_cached
    }
}
