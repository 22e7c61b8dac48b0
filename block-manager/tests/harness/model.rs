//! The block manager, written to be obviously right instead of fast: everything is recounted
//! from the tables, and prefixes are compared whole.

use std::collections::{BTreeMap, VecDeque};

use pageloom_block_manager::{
    BlockManager, Config, Namespace, OutOfBlocks, StepId, TableId, TokenId,
};

struct Table {
    ns: Namespace,
    tokens: Vec<TokenId>,
    blocks: Vec<usize>,
    num_reserved: usize,
}

struct Published {
    ns: Namespace,
    /// All tokens up to the block's end.
    prefix: Vec<TokenId>,
    /// Unique to this publication, and that of the block before it.
    number: u64,
    parent: Option<u64>,
}

/// A source and a destination.
type Copy = (usize, usize);

#[derive(Default)]
struct Counters {
    queried_tokens: usize,
    hit_tokens: usize,
    evictions: u64,
    copies: u64,
}

pub(crate) struct Model {
    config: Config,
    tables: BTreeMap<TableId, Table>,
    /// Blocks nobody holds, the one to take next first.
    idle: VecDeque<usize>,
    published: BTreeMap<usize, Published>,
    next_number: u64,
    unsealed: Vec<Copy>,
    steps: Vec<(StepId, Vec<Copy>)>,
    counters: Counters,
}

impl Model {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            idle: (0..config.num_blocks).collect(),
            config,
            tables: BTreeMap::new(),
            published: BTreeMap::new(),
            next_number: 0,
            unsealed: Vec::new(),
            steps: Vec::new(),
            counters: Counters::default(),
        }
    }

    fn refs(&self, block: usize) -> usize {
        let of = |table: &Table| table.blocks.iter().filter(|&&b| b == block).count();
        self.tables.values().map(of).sum()
    }

    fn pins(&self, block: usize) -> usize {
        let in_flight = self.steps.iter().flat_map(|(_, copies)| copies);
        let of = |&(src, dst): &Copy| usize::from(src == block) + usize::from(dst == block);
        self.unsealed.iter().chain(in_flight).map(of).sum()
    }

    pub(crate) fn is_writable(&self, block: usize) -> bool {
        self.refs(block) == 1 && !self.published.contains_key(&block)
    }

    pub(crate) fn hits(&self, tokens: &[TokenId], ns: Namespace) -> Vec<usize> {
        let block_size = self.config.block_size;
        let (mut blocks, mut parent) = (Vec::new(), None);
        for end in (block_size..tokens.len()).step_by(block_size) {
            let Some(block) = self.find(ns, &tokens[..end], parent) else {
                break;
            };
            parent = Some(self.published[&block].number);
            blocks.push(block);
        }
        blocks
    }

    fn find(&self, ns: Namespace, prefix: &[TokenId], parent: Option<u64>) -> Option<usize> {
        let same = |p: &Published| p.ns == ns && p.prefix == prefix && p.parent == parent;
        let found = self.published.iter().find(|(_, p)| same(p));
        found.map(|(&block, _)| block)
    }

    pub(crate) fn open(&mut self, id: TableId, tokens: &[TokenId], ns: Namespace) {
        let blocks = self.hits(tokens, ns);
        let num_hit = blocks.len() * self.config.block_size;
        self.counters.queried_tokens += tokens.len();
        self.counters.hit_tokens += num_hit;
        self.idle.retain(|block| !blocks.contains(block));
        let table = Table {
            ns,
            tokens: tokens[..num_hit].to_vec(),
            blocks,
            num_reserved: 0,
        };
        assert!(
            self.tables.insert(id, table).is_none(),
            "table id given twice"
        );
    }

    pub(crate) fn reserve(&mut self, id: TableId, num_slots: usize) -> Result<(), OutOfBlocks> {
        let block_size = self.config.block_size;
        let table = &self.tables[&id];
        if num_slots <= table.num_reserved {
            return Ok(());
        }
        let num_tokens = table.tokens.len();
        let tail = num_tokens / block_size;
        let copies =
            !num_tokens.is_multiple_of(block_size) && !self.is_writable(table.blocks[tail]);
        let wanted = (num_tokens + num_slots).div_ceil(block_size);
        let needed = wanted.saturating_sub(table.blocks.len()) + usize::from(copies);
        let available = self.idle.len();
        if needed > available {
            return Err(OutOfBlocks { needed, available });
        }
        if copies {
            let dst = self.take();
            let held = &mut self.tables.get_mut(&id).unwrap().blocks[tail];
            let src = std::mem::replace(held, dst);
            let origin = self.unsealed.iter().find(|copy| copy.1 == src);
            self.unsealed.push((origin.map_or(src, |copy| copy.0), dst));
            self.counters.copies += 1;
            self.let_go(src);
        }
        while self.tables[&id].blocks.len() < wanted {
            let block = self.take();
            self.tables.get_mut(&id).unwrap().blocks.push(block);
        }
        self.tables.get_mut(&id).unwrap().num_reserved = num_slots;
        Ok(())
    }

    fn take(&mut self) -> usize {
        let block = self.idle.pop_front().unwrap();
        self.counters.evictions += u64::from(self.published.remove(&block).is_some());
        block
    }

    fn let_go(&mut self, block: usize) {
        if self.refs(block) + self.pins(block) > 0 || self.idle.contains(&block) {
            return;
        }
        if self.published.contains_key(&block) {
            self.idle.push_back(block);
        } else {
            self.idle.push_front(block);
        }
    }

    pub(crate) fn commit(&mut self, id: TableId, tokens: &[TokenId]) {
        let block_size = self.config.block_size;
        for &token in tokens {
            let table = self.tables.get_mut(&id).unwrap();
            table.tokens.push(token);
            table.num_reserved -= 1;
            if table.tokens.len().is_multiple_of(block_size) && self.config.prefix_caching {
                self.publish(id);
            }
        }
    }

    fn publish(&mut self, id: TableId) {
        let table = &self.tables[&id];
        let place = table.tokens.len() / self.config.block_size - 1;
        let before = place.checked_sub(1).map(|before| table.blocks[before]);
        let parent = before.map(|block| self.published[&block].number);
        let (ns, prefix, block) = (table.ns, table.tokens.clone(), table.blocks[place]);
        match self.find(ns, &prefix, parent) {
            Some(canonical) => {
                self.idle.retain(|&idle| idle != canonical);
                self.tables.get_mut(&id).unwrap().blocks[place] = canonical;
                self.let_go(block);
            }
            None => {
                let number = self.next_number;
                self.next_number += 1;
                let published = Published {
                    ns,
                    prefix,
                    number,
                    parent,
                };
                self.published.insert(block, published);
            }
        }
    }

    pub(crate) fn fork(&mut self, id: TableId, child: TableId) {
        let block_size = self.config.block_size;
        let parent = self.tables.get_mut(&id).unwrap();
        let num_tokens = parent.tokens.len();
        if !num_tokens.is_multiple_of(block_size) {
            parent.num_reserved = 0;
        }
        let table = Table {
            ns: parent.ns,
            tokens: parent.tokens.clone(),
            blocks: parent.blocks[..num_tokens.div_ceil(block_size)].to_vec(),
            num_reserved: 0,
        };
        assert!(
            self.tables.insert(child, table).is_none(),
            "table id given twice"
        );
    }

    pub(crate) fn truncate(&mut self, id: TableId, num_tokens: usize) {
        let num_kept = num_tokens.div_ceil(self.config.block_size);
        let table = self.tables.get_mut(&id).unwrap();
        table.tokens.truncate(num_tokens);
        table.num_reserved = 0;
        let dropped = table.blocks.split_off(num_kept);
        dropped
            .into_iter()
            .rev()
            .for_each(|block| self.let_go(block));
    }

    pub(crate) fn release(&mut self, id: TableId) {
        let table = self.tables.remove(&id).unwrap();
        let blocks = table.blocks.into_iter().rev();
        blocks.for_each(|block| self.let_go(block));
    }

    pub(crate) fn seal(&mut self, step: StepId) {
        let copies = std::mem::take(&mut self.unsealed);
        self.steps.push((step, copies));
    }

    pub(crate) fn complete(&mut self, step: StepId) {
        let place = self.steps.iter().position(|(id, _)| *id == step).unwrap();
        let mut copies: VecDeque<Copy> = std::mem::take(&mut self.steps[place].1).into();
        // One at a time, so that each endpoint becomes idle when its last pin goes.
        while let Some((src, dst)) = copies.pop_front() {
            self.steps[place].1 = copies.iter().copied().chain([(dst, dst)]).collect();
            self.let_go(src);
            self.steps[place].1.pop();
            self.let_go(dst);
        }
        self.steps.remove(place);
    }

    pub(crate) fn reset(&mut self) -> usize {
        let published = &mut self.published;
        let drop = |block: &&usize| published.remove(block).is_some();
        self.idle.iter().filter(drop).count()
    }

    /// The first difference between the model and the manager.
    pub(crate) fn compare(&self, manager: &BlockManager) -> Result<(), String> {
        let same = |what: &str, model: usize, real: usize| {
            if model == real {
                return Ok(());
            }
            Err(format!(
                "{what}: the model says {model}, the manager {real}"
            ))
        };
        for (&id, table) in &self.tables {
            let blocks: Vec<usize> = manager.blocks(id).iter().map(|b| b.index()).collect();
            if blocks != table.blocks {
                return Err(format!(
                    "table {id}: model {:?}, manager {blocks:?}",
                    table.blocks
                ));
            }
            same("tokens", table.tokens.len(), manager.num_tokens(id))?;
            same(
                "reserved slots",
                table.num_reserved,
                manager.num_reserved(id),
            )?;
            for &block in manager.blocks(id) {
                let (model, real) = (self.refs(block.index()), manager.num_references(block));
                same("references", model, real)?;
            }
        }
        let stats = manager.stats();
        let blocks = 0..self.config.num_blocks;
        let referenced = blocks.clone().filter(|&b| self.refs(b) > 0).count();
        let pinned = blocks
            .filter(|&b| self.refs(b) == 0 && self.pins(b) > 0)
            .count();
        let is_cached = |block: &&usize| self.published.contains_key(block);
        let cached = self.idle.iter().filter(is_cached).count();
        same("referenced", referenced, stats.num_referenced)?;
        same("pinned", pinned, stats.num_pinned)?;
        same("cached", cached, stats.num_cached)?;
        same("free", self.idle.len() - cached, stats.num_free)?;
        same("available", self.idle.len(), manager.num_available_blocks())?;
        same("tables", self.tables.len(), stats.num_tables)?;
        same(
            "evictions",
            self.counters.evictions as usize,
            stats.num_evictions as usize,
        )?;
        same(
            "copies",
            self.counters.copies as usize,
            stats.num_copies as usize,
        )?;
        same(
            "queried",
            self.counters.queried_tokens,
            stats.num_queried_tokens as usize,
        )?;
        same(
            "hit",
            self.counters.hit_tokens,
            stats.num_hit_tokens as usize,
        )
    }
}
