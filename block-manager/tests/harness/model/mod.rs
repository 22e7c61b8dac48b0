//! The block manager, written to be obviously right instead of fast: everything is recounted
//! from the tables, and prefixes are compared whole.

mod compare;
mod swap;
mod tier;

use std::collections::{BTreeMap, VecDeque};

use pageloom_block_manager::{Config, Namespace, OutOfBlocks, StepId, TableId, Tier, TokenId};

pub(crate) use tier::Contents;
use tier::Memory;

struct Table {
    ns: Namespace,
    tokens: Vec<TokenId>,
    /// Blocks released from its head, and the number of the last one's contents.
    num_passed: usize,
    base: Option<u64>,
    tier: Tier,
    blocks: Vec<usize>,
    num_reserved: usize,
}

/// A block of one of the tiers.
type Place = (Tier, usize);

/// A source and a destination; their tiers tell a copy from a swap.
#[derive(Clone, Copy)]
struct Transfer {
    src: Place,
    dst: Place,
}

#[derive(Default)]
struct Counters {
    queried_tokens: usize,
    hit_tokens: usize,
    copies: u64,
    swapped_out: u64,
    swapped_in: u64,
    demoted: u64,
    promoted: u64,
}

pub(crate) struct Model {
    config: Config,
    tables: BTreeMap<TableId, Table>,
    device: Memory,
    host: Memory,
    next_number: u64,
    unsealed: Vec<Transfer>,
    /// What each step sealed and not completed pins.
    steps: Vec<(StepId, VecDeque<Place>)>,
    counters: Counters,
}

/// Both ends of each transfer, but for what is copied to the host, which is done before anything
/// else of a step.
fn pinned(transfers: &[Transfer]) -> impl Iterator<Item = Place> {
    let goes_out = |t: &Transfer| (t.src.0, t.dst.0) == (Tier::Device, Tier::Host);
    let ends = move |t: &Transfer| match goes_out(t) {
        true => vec![t.dst],
        false => vec![t.src, t.dst],
    };
    transfers.iter().flat_map(ends)
}

impl Model {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            device: Memory::new(Tier::Device, config.num_blocks, config.eviction),
            host: Memory::new(Tier::Host, config.num_host_blocks, config.eviction),
            config,
            tables: BTreeMap::new(),
            next_number: 1,
            unsealed: Vec::new(),
            steps: Vec::new(),
            counters: Counters::default(),
        }
    }

    fn memory(&self, tier: Tier) -> &Memory {
        match tier {
            Tier::Device => &self.device,
            Tier::Host => &self.host,
        }
    }

    fn memory_mut(&mut self, tier: Tier) -> &mut Memory {
        match tier {
            Tier::Device => &mut self.device,
            Tier::Host => &mut self.host,
        }
    }

    fn table(&mut self, id: TableId) -> &mut Table {
        self.tables.get_mut(&id).expect("the table is open")
    }

    fn insert(&mut self, id: TableId, table: Table) {
        let before = self.tables.insert(id, table);
        assert!(before.is_none(), "table id given twice");
    }

    fn refs(&self, (tier, block): Place) -> usize {
        let of = |table: &Table| table.blocks.iter().filter(|&&b| b == block).count();
        let there = self.tables.values().filter(|table| table.tier == tier);
        there.map(of).sum()
    }

    fn pins(&self, place: Place) -> usize {
        let sealed = self.steps.iter().flat_map(|(_, pinned)| pinned.iter());
        let pinned = sealed.copied().chain(pinned(&self.unsealed));
        pinned.filter(|&pin| pin == place).count()
    }

    /// Whether the device's `block` may be written.
    pub(crate) fn is_writable(&self, block: usize) -> bool {
        self.refs((Tier::Device, block)) == 1 && !self.device.published.contains_key(&block)
    }

    /// The block is idle, unless someone still holds it.
    fn let_go(&mut self, place: Place) {
        if self.refs(place) + self.pins(place) == 0 {
            self.memory_mut(place.0).add_idle(place.1);
        }
    }

    /// Takes a block of the device; the host keeps what it held, if it has room.
    fn take(&mut self) -> usize {
        let (block, evicted) = self.device.take();
        let Some((contents, asked_again)) = evicted else {
            return block;
        };
        if let Some(twin) = self.host.numbered(contents.number) {
            self.host.idle.touch(twin);
        } else if self.host.idle.len() > 0 {
            let (dst, _) = self.host.take();
            self.host.publish(dst, contents, asked_again);
            self.order((Tier::Device, block), (Tier::Host, dst));
            self.counters.demoted += 1;
        }
        block
    }

    fn order(&mut self, src: Place, dst: Place) {
        self.unsealed.push(Transfer { src, dst });
    }

    /// The transfer not yet sealed that fills the device's `block`.
    fn filled_by(&self, block: usize) -> Option<Transfer> {
        let fills = |t: &&Transfer| t.dst == (Tier::Device, block);
        self.unsealed.iter().find(fills).copied()
    }

    /// The cached blocks of a prompt in both tiers, those of the device preferred.
    fn hits(&self, tokens: &[TokenId], ns: Namespace) -> Vec<Place> {
        let block_size = self.config.block_size;
        let (mut hits, mut parent) = (Vec::new(), None);
        for end in (block_size..tokens.len()).step_by(block_size) {
            let found = [Tier::Device, Tier::Host].into_iter().find_map(|tier| {
                let block = self.memory(tier).find(ns, &tokens[..end], parent)?;
                Some((tier, block))
            });
            let Some((tier, block)) = found else {
                break;
            };
            parent = Some(self.memory(tier).published[&block].number);
            hits.push((tier, block));
        }
        hits
    }

    /// The hits that opening uses: all those of the device are set aside, then each of the host
    /// takes one of the blocks left.
    pub(crate) fn usable(&self, tokens: &[TokenId], ns: Namespace) -> Vec<Place> {
        let mut hits = self.hits(tokens, ns);
        let idle = |hit: &&Place| hit.0 == Tier::Device && self.device.idle.contains(hit.1);
        let room = self.device.idle.len() - hits.iter().filter(idle).count();
        let mut on_host = (0..hits.len()).filter(|&at| hits[at].0 == Tier::Host);
        if let Some(first_too_many) = on_host.nth(room) {
            hits.truncate(first_too_many);
        }
        hits
    }

    /// Blocks of the device that opening with these hits takes from the available ones.
    pub(crate) fn num_taken(&self, hits: &[Place]) -> usize {
        let takes =
            |&&(tier, block): &&Place| tier == Tier::Host || self.device.idle.contains(block);
        hits.iter().filter(takes).count()
    }

    pub(crate) fn open(&mut self, id: TableId, tokens: &[TokenId], ns: Namespace) {
        let hits = self.usable(tokens, ns);
        let num_hit = hits.len() * self.config.block_size;
        self.counters.queried_tokens += tokens.len();
        self.counters.hit_tokens += num_hit;
        for &(tier, block) in &hits {
            self.memory_mut(tier).hit(block);
        }
        let mut blocks = Vec::new();
        for (tier, block) in hits {
            blocks.push(match tier {
                Tier::Device => block,
                Tier::Host => {
                    self.counters.promoted += 1;
                    self.copy_in(block)
                }
            });
        }
        let table = Table {
            ns,
            tokens: tokens[..num_hit].to_vec(),
            num_passed: 0,
            base: None,
            tier: Tier::Device,
            blocks,
            num_reserved: 0,
        };
        self.insert(id, table);
    }

    /// Whether a request is admitted; [`open`](Self::open) and [`reserve`](Self::reserve) follow.
    pub(crate) fn admits(
        &self,
        tokens: &[TokenId],
        num_tokens: usize,
        ns: Namespace,
        keep: usize,
    ) -> Result<(), OutOfBlocks> {
        let hits = self.usable(tokens, ns);
        let wanted = num_tokens.div_ceil(self.config.block_size);
        let needed = wanted.saturating_sub(hits.len()) + self.num_taken(&hits);
        self.device.check_available(needed, keep)
    }

    pub(crate) fn reserve(&mut self, id: TableId, num_slots: usize) -> Result<(), OutOfBlocks> {
        let block_size = self.config.block_size;
        let table = &self.tables[&id];
        if num_slots <= table.num_reserved {
            return Ok(());
        }
        let num_tokens = table.tokens.len();
        let tail = num_tokens / block_size - table.num_passed;
        let copies =
            !num_tokens.is_multiple_of(block_size) && !self.is_writable(table.blocks[tail]);
        let wanted = (num_tokens + num_slots).div_ceil(block_size) - table.num_passed;
        let num_new = wanted.saturating_sub(table.blocks.len());
        self.device
            .check_available(num_new + usize::from(copies), 0)?;
        if copies {
            let dst = self.take();
            let src = std::mem::replace(&mut self.table(id).blocks[tail], dst);
            // One that is itself to be copied is read where its copy is.
            let origin = match self.filled_by(src) {
                Some(fill) if fill.src.0 == Tier::Device => fill.src,
                _ => (Tier::Device, src),
            };
            self.order(origin, (Tier::Device, dst));
            self.counters.copies += 1;
            self.let_go((Tier::Device, src));
        }
        for _ in 0..num_new {
            let block = self.take();
            self.table(id).blocks.push(block);
        }
        self.table(id).num_reserved = num_slots;
        Ok(())
    }

    pub(crate) fn commit(&mut self, id: TableId, tokens: &[TokenId]) {
        let block_size = self.config.block_size;
        for &token in tokens {
            let table = self.table(id);
            table.tokens.push(token);
            table.num_reserved -= 1;
            if table.tokens.len().is_multiple_of(block_size) && self.config.prefix_caching {
                self.publish(id);
            }
        }
    }

    fn publish(&mut self, id: TableId) {
        let table = &self.tables[&id];
        let place = table.tokens.len() / self.config.block_size - 1 - table.num_passed;
        let parent = match place.checked_sub(1) {
            Some(before) => Some(self.device.published[&table.blocks[before]].number),
            None => table.base,
        };
        let (ns, prefix, block) = (table.ns, table.tokens.clone(), table.blocks[place]);
        if let Some(canonical) = self.device.find(ns, &prefix, parent) {
            self.device.idle.remove(canonical);
            self.table(id).blocks[place] = canonical;
            self.let_go((Tier::Device, block));
            return;
        }
        let number = match self.host.find(ns, &prefix, parent) {
            Some(twin) => self.host.published[&twin].number,
            None => {
                self.next_number += 1;
                self.next_number - 1
            }
        };
        let contents = Contents {
            ns,
            prefix,
            number,
            parent,
        };
        self.device.publish(block, contents, false);
    }

    pub(crate) fn fork(&mut self, id: TableId, child: TableId) {
        let block_size = self.config.block_size;
        let parent = self.table(id);
        let num_tokens = parent.tokens.len();
        if !num_tokens.is_multiple_of(block_size) {
            parent.num_reserved = 0;
        }
        let num_blocks = num_tokens.div_ceil(block_size) - parent.num_passed;
        let table = Table {
            ns: parent.ns,
            tokens: parent.tokens.clone(),
            num_passed: parent.num_passed,
            base: parent.base,
            tier: parent.tier,
            blocks: parent.blocks[..num_blocks].to_vec(),
            num_reserved: 0,
        };
        self.insert(child, table);
    }

    pub(crate) fn truncate(&mut self, id: TableId, num_tokens: usize) {
        let block_size = self.config.block_size;
        let table = self.table(id);
        let tier = table.tier;
        table.tokens.truncate(num_tokens);
        table.num_reserved = 0;
        let num_kept = num_tokens.div_ceil(block_size) - table.num_passed;
        let dropped = table.blocks.split_off(num_kept);
        for block in dropped.into_iter().rev() {
            self.let_go((tier, block));
        }
    }

    pub(crate) fn release_before(&mut self, id: TableId, position: usize) -> usize {
        let block_size = self.config.block_size;
        let table = self.table(id);
        let num_released = (position / block_size).saturating_sub(table.num_passed);
        let kept = table.blocks.split_off(num_released);
        let released = std::mem::replace(&mut table.blocks, kept);
        table.num_passed += num_released;
        if let Some(last) = released.last() {
            let contents = self.device.published.get(last);
            self.table(id).base = contents.map(|contents| contents.number);
        }
        for &block in released.iter().rev() {
            self.let_go((Tier::Device, block));
        }
        num_released
    }

    pub(crate) fn release(&mut self, id: TableId) {
        let table = self.tables.remove(&id).expect("the table is open");
        for block in table.blocks.into_iter().rev() {
            self.let_go((table.tier, block));
        }
    }

    pub(crate) fn complete(&mut self, step: StepId) {
        let at = self.steps.iter().position(|(id, _)| *id == step);
        let at = at.expect("the step is in flight");
        while let Some(place) = self.steps[at].1.pop_front() {
            self.let_go(place);
        }
        self.steps.remove(at);
    }

    pub(crate) fn reset(&mut self) -> usize {
        self.device.reset() + self.host.reset()
    }
}
