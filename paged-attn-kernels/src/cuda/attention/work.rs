//! A step's work lists: plain arithmetic on the host.
//!
//! ```text
//! sequence --rows--> units --keys--> pieces --key-value heads--> items
//!                                      |
//!                                      +-- of split units: combine items
//! ```

use std::cmp::Reverse;
use std::ops::Range;

use super::params::{AttendItem, CombineItem, NO_PARTIAL};
use super::split::{Slots, TILE_KEYS, longest_piece};
use crate::batch::SequenceRows;
use crate::cuda::CudaError;
use crate::{AttendBatch, CacheLayout};

/// Packed rows up to which a sequence goes to the kernel for few rows, in tiles that read the same
/// keys: a tile of the other one would be mostly empty.
const MAX_FEW_ROWS: usize = 32;

/// How a kernel wants its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tiling {
    /// Packed rows of an item at most.
    pub(super) rows: usize,
    /// What runs them.
    pub(super) slots: Slots,
    /// Keys of a piece where the plan may not depend on the batch; pieces begin at its multiples.
    pub(super) invariant_keys: u32,
}

/// What the work is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WorkShape {
    pub(super) layout: CacheLayout,
    pub(super) num_heads: usize,
    /// Keys that a row sees, its own included; 0: all.
    pub(super) window: usize,
    pub(super) batch_invariant: bool,
    /// The kernel for few rows.
    pub(super) few: Tiling,
    /// The kernel for many rows; without it the other one does all.
    pub(super) many: Option<Tiling>,
}

/// Packed rows of one sequence, with all the keys that any of them sees.
#[derive(Debug, Clone)]
struct Unit {
    first_row: u32,
    first_position: u32,
    first_packed: u32,
    num_packed: u32,
    table_offset: u32,
    keys: Range<u32>,
}

impl Unit {
    /// Tiles that hold its keys.
    fn tiles(&self) -> Range<u32> {
        self.keys.start / TILE_KEYS..self.keys.end.div_ceil(TILE_KEYS)
    }
}

/// A part of a unit's keys.
#[derive(Debug, Clone)]
struct Piece {
    unit: usize,
    keys: Range<u32>,
    /// Of key-value head 0, and how much further on each next head's are; none if it is whole.
    partial: Option<(u32, u32)>,
}

/// Work lists. Keeps its memory from step to step.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// Block ids of all sequences, as many as their keys need.
    pub(super) block_tables: Vec<u32>,
    /// Items for the kernel for few rows.
    pub(super) few: Vec<AttendItem>,
    /// Items for the kernel for many rows.
    pub(super) many: Vec<AttendItem>,
    /// What is summed afterwards.
    pub(super) combine: Vec<CombineItem>,
    /// Rows of partial results.
    pub(super) num_partials: u32,
    few_units: Vec<Unit>,
    many_units: Vec<Unit>,
    pieces: Vec<Piece>,
    lens: Vec<u32>,
}

impl Work {
    /// Replaces the lists by those of `batch`.
    ///
    /// # Errors
    /// Those of [`AttendBatch::sequences`], and [`CudaError::Argument`] for more rows, blocks or
    /// partial results than 32 bits number.
    pub(super) fn plan(
        &mut self,
        shape: &WorkShape,
        batch: &AttendBatch<'_>,
    ) -> Result<(), CudaError> {
        self.clear();
        let made = self.make(shape, batch);
        if made.is_err() {
            self.clear();
        }
        made
    }

    /// Leaves nothing to do.
    pub(super) fn clear(&mut self) {
        self.block_tables.clear();
        self.few.clear();
        self.many.clear();
        self.combine.clear();
        self.num_partials = 0;
        self.few_units.clear();
        self.many_units.clear();
    }

    fn make(&mut self, shape: &WorkShape, batch: &AttendBatch<'_>) -> Result<(), CudaError> {
        for sequence in batch.sequences(&shape.layout, shape.num_heads)? {
            self.add_sequence(shape, &sequence?)?;
        }
        let units = std::mem::take(&mut self.few_units);
        let mut items = std::mem::take(&mut self.few);
        let made = self.cut(shape, &shape.few, &units, &mut items);
        (self.few_units, self.few) = (units, items);
        made?;
        if let Some(many) = &shape.many {
            let units = std::mem::take(&mut self.many_units);
            let mut items = std::mem::take(&mut self.many);
            let made = self.cut(shape, many, &units, &mut items);
            (self.many_units, self.many) = (units, items);
            made?;
        }
        Ok(())
    }

    /// Cuts a sequence's packed rows into units.
    fn add_sequence(
        &mut self,
        shape: &WorkShape,
        sequence: &SequenceRows<'_>,
    ) -> Result<(), CudaError> {
        let group = shape.num_heads / shape.layout.num_kv_heads;
        let num_packed = sequence.queries.len().saturating_mul(group);
        let (tiling, units) = match &shape.many {
            Some(many) if num_packed > MAX_FEW_ROWS => (many, &mut self.many_units),
            _ => (&shape.few, &mut self.few_units),
        };
        let first_row = number("query rows", sequence.queries.start)?;
        let table_offset = number("block_tables", self.block_tables.len())?;
        // A row of every token is numbered.
        number("packed rows of a sequence", num_packed)?;
        number("context_lens", sequence.context_len)?;
        let first_position = sequence.context_len - sequence.queries.len();
        for first in (0..num_packed).step_by(tiling.rows) {
            let len = tiling.rows.min(num_packed - first);
            let first_end = first_position + first / group + 1;
            let end = first_position + (first + len - 1) / group + 1;
            let start = match shape.window {
                0 => 0,
                window => first_end.saturating_sub(window),
            };
            units.push(Unit {
                first_row,
                first_position: first_position as u32,
                first_packed: first as u32,
                num_packed: len as u32,
                table_offset,
                keys: start as u32..end as u32,
            });
        }
        self.block_tables.extend_from_slice(sequence.table);
        Ok(())
    }

    /// Makes the items of a kernel's units.
    fn cut(
        &mut self,
        shape: &WorkShape,
        tiling: &Tiling,
        units: &[Unit],
        items: &mut Vec<AttendItem>,
    ) -> Result<(), CudaError> {
        let num_kv_heads = shape.layout.num_kv_heads;
        self.lens.clear();
        self.lens
            .extend(units.iter().map(|unit| unit.tiles().len() as u32));
        let longest = match shape.batch_invariant {
            true => 0,
            false => longest_piece(&self.lens, num_kv_heads, tiling.slots),
        };
        let mut pieces = std::mem::take(&mut self.pieces);
        pieces.clear();
        for (i, unit) in units.iter().enumerate() {
            let first = pieces.len();
            match shape.batch_invariant {
                true => split_at(unit, i, tiling.invariant_keys, &mut pieces),
                false => split_evenly(unit, i, longest, &mut pieces),
            }
            if pieces.len() - first > 1 {
                self.combine_later(unit, num_kv_heads, &mut pieces[first..])?;
            }
        }
        // The longest first, for an early end; then by unit, whose heads' pages are neighbours.
        pieces.sort_unstable_by_key(|piece| {
            let len = piece.keys.end - piece.keys.start;
            (Reverse(len), piece.unit, piece.keys.start)
        });
        for piece in &pieces {
            let unit = &units[piece.unit];
            items.extend((0..num_kv_heads as u32).map(|kv_head| AttendItem {
                first_row: unit.first_row,
                first_position: unit.first_position,
                first_packed: unit.first_packed,
                num_packed: unit.num_packed,
                kv_head,
                table_offset: unit.table_offset,
                kv_begin: piece.keys.start,
                kv_end: piece.keys.end,
                partial: match piece.partial {
                    None => NO_PARTIAL,
                    Some((first, stride)) => first + kv_head * stride,
                },
            }));
        }
        self.pieces = pieces;
        number("items", items.len())?;
        Ok(())
    }

    /// Gives the pieces of a unit room for their results, and has them summed.
    fn combine_later(
        &mut self,
        unit: &Unit,
        num_kv_heads: usize,
        pieces: &mut [Piece],
    ) -> Result<(), CudaError> {
        let num_splits = pieces.len() as u32;
        let first = self.num_partials;
        let rows = pieces.len() as u64 * u64::from(unit.num_packed);
        let end = u64::from(first) + rows * num_kv_heads as u64;
        // NO_PARTIAL is not a number of one.
        self.num_partials = number("partial results", end as usize)?;
        let stride = rows as u32;
        for (i, piece) in pieces.iter_mut().enumerate() {
            piece.partial = Some((first + i as u32 * unit.num_packed, stride));
        }
        let combine = |kv_head| CombineItem {
            first_row: unit.first_row,
            first_packed: unit.first_packed,
            num_packed: unit.num_packed,
            kv_head,
            partial: first + kv_head * stride,
            num_splits,
        };
        self.combine.extend((0..num_kv_heads as u32).map(combine));
        Ok(())
    }
}

/// Cuts at the multiples of `keys`.
fn split_at(unit: &Unit, index: usize, keys: u32, pieces: &mut Vec<Piece>) {
    let segments = unit.keys.start / keys..unit.keys.end.div_ceil(keys);
    pieces.extend(segments.map(|segment| {
        Piece {
            unit: index,
            keys: unit.keys.start.max(segment * keys)
                ..unit
                    .keys
                    .end
                    .min(segment.saturating_add(1).saturating_mul(keys)),
            partial: None,
        }
    }));
}

/// Cuts into pieces of at most `longest` tiles, of which none is more than one longer than another.
fn split_evenly(unit: &Unit, index: usize, longest: u32, pieces: &mut Vec<Piece>) {
    let tiles = unit.tiles();
    let len = tiles.end - tiles.start;
    let num_pieces = len.div_ceil(longest.max(1));
    let border = |i: u32| {
        let tile = u64::from(tiles.start) + u64::from(len) * u64::from(i) / u64::from(num_pieces);
        let key = (tile * u64::from(TILE_KEYS)).min(u64::from(unit.keys.end)) as u32;
        key.max(unit.keys.start)
    };
    pieces.extend((0..num_pieces).map(|i| Piece {
        unit: index,
        keys: border(i)..border(i + 1),
        partial: None,
    }));
}

/// `n` as kernels number it; the largest number is not one.
fn number(name: &'static str, n: usize) -> Result<u32, CudaError> {
    match u32::try_from(n) {
        Ok(n) if n != u32::MAX => Ok(n),
        _ => Err(CudaError::Argument {
            name,
            expected: "below 2^32 - 1",
            found: n.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests;
