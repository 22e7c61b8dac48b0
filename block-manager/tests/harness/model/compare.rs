//! The model's state beside the manager's.

use pageloom_block_manager::{BlockManager, TableId, Tier, TierStats};

use super::{Contents, Model, Table};

/// The model's figure and the manager's, by name.
type Figure = (&'static str, usize, usize);

fn first_difference(figures: &[Figure]) -> Result<(), String> {
    let different = |&&(_, model, real): &&Figure| model != real;
    match figures.iter().find(different) {
        None => Ok(()),
        Some((what, model, real)) => Err(format!(
            "{what}: the model says {model}, the manager {real}"
        )),
    }
}

impl Model {
    /// What is published in `tier`, in the order of publication.
    pub(crate) fn published(&self, tier: Tier) -> Vec<&Contents> {
        let mut all: Vec<&Contents> = self.memory(tier).published.values().collect();
        all.sort_by_key(|contents| contents.number);
        all
    }

    /// The first difference between the model and the manager.
    pub(crate) fn compare(&self, manager: &BlockManager) -> Result<(), String> {
        for (&id, table) in &self.tables {
            self.compare_table(id, table, manager)
                .map_err(|e| format!("table {id}: {e}"))?;
        }
        let stats = manager.stats();
        self.compare_tier(Tier::Device, &stats.device)
            .map_err(|e| format!("device: {e}"))?;
        self.compare_tier(Tier::Host, &stats.host)
            .map_err(|e| format!("host: {e}"))?;
        let ours = &self.counters;
        let available = manager.num_available_blocks();
        let count = |counter: u64| counter as usize;
        let (queried, hit) = (stats.num_queried_tokens, stats.num_hit_tokens);
        let (outs, ins) = (stats.num_swapped_out, stats.num_swapped_in);
        let (demoted, promoted) = (stats.num_demoted, stats.num_promoted);
        first_difference(&[
            ("available", self.device.idle.len(), available),
            ("tables", self.tables.len(), stats.num_tables),
            ("queried tokens", ours.queried_tokens, count(queried)),
            ("hit tokens", ours.hit_tokens, count(hit)),
            ("copies", count(ours.copies), count(stats.num_copies)),
            ("swapped out", count(ours.swapped_out), count(outs)),
            ("swapped in", count(ours.swapped_in), count(ins)),
            ("demoted", count(ours.demoted), count(demoted)),
            ("promoted", count(ours.promoted), count(promoted)),
        ])
    }

    fn compare_table(
        &self,
        id: TableId,
        table: &Table,
        manager: &BlockManager,
    ) -> Result<(), String> {
        if manager.tier(id) != table.tier {
            return Err(format!("the model has it on the {:?}", table.tier));
        }
        first_difference(&[
            ("tokens", table.tokens.len(), manager.num_tokens(id)),
            ("reserved", table.num_reserved, manager.num_reserved(id)),
            ("passed", table.num_passed, manager.num_passed_blocks(id)),
        ])?;
        if table.tier == Tier::Host {
            // Its blocks show when the transfers of a step are compared.
            return Ok(());
        }
        let blocks: Vec<usize> = manager.blocks(id).iter().map(|b| b.index()).collect();
        if blocks != table.blocks {
            let model = &table.blocks;
            return Err(format!("the model has {model:?}, the manager {blocks:?}"));
        }
        for &block in manager.blocks(id) {
            let model = self.refs((Tier::Device, block.index()));
            let real = manager.num_references(block);
            first_difference(&[("references", model, real)])?;
        }
        Ok(())
    }

    fn compare_tier(&self, tier: Tier, stats: &TierStats) -> Result<(), String> {
        let memory = self.memory(tier);
        let blocks = 0..memory.num_blocks;
        let is_held = |&block: &usize| self.refs((tier, block)) > 0;
        let referenced = blocks.clone().filter(is_held).count();
        let is_pinned = |block: &usize| !is_held(block) && self.pins((tier, *block)) > 0;
        let pinned = blocks.clone().filter(is_pinned).count();
        let references = blocks.map(|block| self.refs((tier, block))).sum();
        let cached = memory.idle.num_cached();
        let free = memory.idle.len() - cached;
        let evictions = (memory.evictions as usize, stats.num_evictions as usize);
        first_difference(&[
            ("blocks", memory.num_blocks, stats.num_blocks),
            ("referenced", referenced, stats.num_referenced),
            ("pinned", pinned, stats.num_pinned),
            ("references", references, stats.num_references),
            ("cached", cached, stats.num_cached),
            ("free", free, stats.num_free),
            ("evictions", evictions.0, evictions.1),
        ])
    }
}
