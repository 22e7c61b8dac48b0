//! The work list of a step: made once on the host, run by every layer.

use super::item::{MAX_ITEM_ROWS, QueryRows, SEGMENT_KEYS, partial_len};
use super::micro::MAX_ROWS;
use super::scratch::Scratch;
use crate::batch::SequenceRows;
use crate::cpu::Isa;
use crate::{AttendBatch, CacheLayout, KernelError};

/// Items a thread should get so that the last ones to finish do not leave others idle for long.
const ITEMS_PER_THREAD: usize = 4;

/// Pieces a thread should get where long contexts are split: these cost little, and the fewer the
/// pieces, the longer one thread waits for the last (5 of 16 segments against 6, say).
const PIECES_PER_THREAD: usize = 16;

/// Fewest query rows an item is cut down to for the sake of balance.
const MIN_ITEM_ROWS: usize = 24;

/// What the items are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PlanShape {
    pub(super) layout: CacheLayout,
    pub(super) num_heads: usize,
    pub(super) num_tokens: usize,
}

/// A validated sequence.
#[derive(Clone, Copy)]
pub(super) struct Sequence {
    /// Its blocks in the plan's tables.
    pub(super) table_start: usize,
    pub(super) num_blocks: usize,
    /// Its first query row in the batch.
    pub(super) query_start: usize,
    num_queries: usize,
    context_len: usize,
}

/// A unit of work; see [`super::item`].
#[derive(Clone, Copy)]
pub(super) struct WorkItem {
    pub(super) sequence: usize,
    pub(super) kv_head: usize,
    pub(super) rows: QueryRows,
    pub(super) first_segment: usize,
    pub(super) end_segment: usize,
    /// Where the sums of its segment 0 go, if others take part in the same rows.
    pub(super) partials: Option<usize>,
}

impl WorkItem {
    /// Multiplications, in arbitrary units.
    fn cost(&self) -> usize {
        let keys = self.rows.max_visible().min(self.end_segment * SEGMENT_KEYS)
            - self.first_segment * SEGMENT_KEYS;
        // A tile of few rows is bound by reading keys; one of more by arithmetic.
        (self.rows.len().div_ceil(MAX_ROWS)) * keys
    }

    fn num_segments(&self) -> usize {
        self.end_segment - self.first_segment
    }
}

/// The work of one step, for any of a model's layers.
///
/// Keeps its buffers from step to step, so planning and running allocate nothing once the largest
/// step has been seen.
pub struct AttendPlan {
    pub(super) isa: Isa,
    pub(super) shape: Option<PlanShape>,
    pub(super) block_tables: Vec<u32>,
    pub(super) sequences: Vec<Sequence>,
    pub(super) items: Vec<WorkItem>,
    /// Whole items of those that were split; merged when all items are done.
    pub(super) merges: Vec<WorkItem>,
    pub(super) partials: Vec<f32>,
    pub(super) scratch: Vec<Scratch>,
}

impl AttendPlan {
    /// An empty plan for the widest instruction set of this machine.
    pub fn new() -> Self {
        Self::empty(Isa::detect())
    }

    /// As [`new`](Self::new), for a given instruction set.
    ///
    /// # Errors
    /// [`KernelError::IsaUnsupported`].
    pub fn with_isa(isa: Isa) -> Result<Self, KernelError> {
        if !isa.is_supported() {
            return Err(KernelError::IsaUnsupported { isa: isa.name() });
        }
        Ok(Self::empty(isa))
    }

    fn empty(isa: Isa) -> Self {
        Self {
            isa,
            shape: None,
            block_tables: Vec::new(),
            sequences: Vec::new(),
            items: Vec::new(),
            merges: Vec::new(),
            partials: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// Replaces the work by that of a new step.
    ///
    /// `num_heads` query heads, a multiple of the layout's key-value heads. `num_threads` is how
    /// many the work should keep busy; it changes no bit of any result.
    ///
    /// # Errors
    /// Those of [`CacheLayout::validate`], [`KernelError::HeadGroups`], [`KernelError::Offsets`],
    /// [`KernelError::ContextTooShort`], [`KernelError::TableTooShort`] or [`KernelError::Block`];
    /// the plan is then empty and refuses to run.
    pub fn plan(
        &mut self,
        layout: &CacheLayout,
        num_heads: usize,
        batch: &AttendBatch<'_>,
        num_threads: usize,
    ) -> Result<(), KernelError> {
        self.shape = None;
        self.block_tables.clear();
        self.sequences.clear();
        self.items.clear();
        self.merges.clear();
        for sequence in batch.sequences(layout, num_heads)? {
            self.add_sequence(&sequence?);
        }
        let group = num_heads / layout.num_kv_heads;
        self.cut_into_items(layout, group, num_threads.max(1));
        self.shape = Some(PlanShape {
            layout: *layout,
            num_heads,
            num_tokens: batch.num_tokens(),
        });
        Ok(())
    }

    /// Query rows of the step.
    pub fn num_tokens(&self) -> usize {
        self.shape.map_or(0, |shape| shape.num_tokens)
    }

    fn add_sequence(&mut self, sequence: &SequenceRows<'_>) {
        self.sequences.push(Sequence {
            table_start: self.block_tables.len(),
            num_blocks: sequence.table.len(),
            query_start: sequence.queries.start,
            num_queries: sequence.queries.len(),
            context_len: sequence.context_len,
        });
        self.block_tables.extend_from_slice(sequence.table);
    }

    fn cut_into_items(&mut self, layout: &CacheLayout, group: usize, num_threads: usize) {
        let num_rows = |seq: &Sequence| seq.num_queries * group;
        let all_rows: usize = self.sequences.iter().map(num_rows).sum();
        let wanted_items = num_threads * ITEMS_PER_THREAD;
        let most_rows = (all_rows * layout.num_kv_heads / wanted_items)
            .clamp(MIN_ITEM_ROWS, MAX_ITEM_ROWS)
            .next_multiple_of(MAX_ROWS);
        for (sequence, seq) in self.sequences.iter().enumerate() {
            let num_items = num_rows(seq).div_ceil(most_rows).max(1);
            let rows_each = num_rows(seq).div_ceil(num_items).next_multiple_of(MAX_ROWS);
            for begin in (0..num_rows(seq)).step_by(rows_each.max(1)) {
                let rows = QueryRows {
                    begin,
                    end: (begin + rows_each).min(num_rows(seq)),
                    group,
                    first_visible: seq.context_len - seq.num_queries + 1,
                };
                let end_segment = rows.max_visible().div_ceil(SEGMENT_KEYS);
                self.items
                    .extend((0..layout.num_kv_heads).map(|kv_head| WorkItem {
                        sequence,
                        kv_head,
                        rows,
                        first_segment: 0,
                        end_segment,
                        partials: None,
                    }));
            }
        }
        if num_threads > 1 && self.items.len() < wanted_items {
            self.split_long_items(layout, num_threads * PIECES_PER_THREAD);
        }
        // Longest first, so that the end of the list fills the gaps.
        self.items
            .sort_unstable_by_key(|item| std::cmp::Reverse(item.cost()));
    }

    /// Splits items over segments where one would keep a thread busy while others idle.
    fn split_long_items(&mut self, layout: &CacheLayout, wanted_items: usize) {
        let total: usize = self.items.iter().map(WorkItem::cost).sum();
        let fair = total.div_ceil(wanted_items).max(1);
        let mut num_partials = 0;
        for i in 0..self.items.len() {
            let whole = self.items[i];
            let pieces = whole.num_segments().min(whole.cost().div_ceil(fair));
            if pieces < 2 {
                continue;
            }
            let len = partial_len(whole.rows.len(), layout.head_dim) * whole.num_segments();
            let partials = Some(num_partials);
            num_partials += len;
            self.merges.push(WorkItem { partials, ..whole });
            let starts = |p: usize| whole.num_segments() * p / pieces;
            self.items[i].end_segment = starts(1);
            self.items[i].partials = partials;
            self.items.extend((1..pieces).map(|p| WorkItem {
                first_segment: starts(p),
                end_segment: starts(p + 1),
                partials,
                ..whole
            }));
        }
        if self.partials.len() < num_partials {
            self.partials.resize(num_partials, 0.0);
        }
    }
}

impl Default for AttendPlan {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for AttendPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AttendPlan")
            .field("isa", &self.isa)
            .field("shape", &self.shape)
            .field("num_items", &self.items.len())
            .field("num_split", &self.merges.len())
            .finish_non_exhaustive()
    }
}
