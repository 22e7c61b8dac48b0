//! What a step attends to, for any back end.

use std::ops::Range;

use crate::{CacheLayout, KernelError};

/// The sequences of a step: query rows and the keys they see.
///
/// Sequence `s` has query rows `query_offsets[s]..query_offsets[s + 1]` of `q` and `out`: one for
/// a decode, several for a prefill chunk. Its last row sees `context_lens[s]` keys, its own
/// included; each row before sees one less. Its blocks are
/// `block_tables[table_offsets[s]..table_offsets[s + 1]]`, in the order of its tokens; there may
/// be more than the context needs.
#[derive(Debug, Clone, Copy)]
pub struct AttendBatch<'a> {
    /// `num_seqs + 1` ascending offsets from 0.
    pub query_offsets: &'a [u32],
    /// `num_seqs` key counts, each at least the sequence's number of query rows.
    pub context_lens: &'a [u32],
    /// Block ids of all sequences, one after another.
    pub block_tables: &'a [u32],
    /// `num_seqs + 1` ascending offsets into `block_tables`.
    pub table_offsets: &'a [u32],
}

/// One sequence of a batch that was checked.
#[derive(Debug, Clone)]
pub(crate) struct SequenceRows<'a> {
    /// Its rows in `q` and `out`.
    pub(crate) queries: Range<usize>,
    /// Keys that its last row sees.
    pub(crate) context_len: usize,
    /// As many blocks as those keys need.
    pub(crate) table: &'a [u32],
}

impl<'a> AttendBatch<'a> {
    /// Checks that the batch fits a cache and `num_heads` query heads; gives its sequences.
    ///
    /// # Errors
    /// Those of [`CacheLayout::validate`], [`KernelError::HeadGroups`], [`KernelError::Offsets`],
    /// [`KernelError::ContextTooShort`], [`KernelError::TableTooShort`] or [`KernelError::Block`].
    pub(crate) fn sequences(
        &self,
        layout: &CacheLayout,
        num_heads: usize,
    ) -> Result<impl Iterator<Item = Result<SequenceRows<'a>, KernelError>>, KernelError> {
        layout.validate()?;
        if num_heads == 0 || !num_heads.is_multiple_of(layout.num_kv_heads) {
            return Err(KernelError::HeadGroups {
                num_heads,
                num_kv_heads: layout.num_kv_heads,
            });
        }
        let num_seqs = self.context_lens.len();
        check_offsets(
            "query_offsets",
            self.query_offsets,
            num_seqs,
            u32::MAX as usize,
        )?;
        let num_tables = self.block_tables.len();
        check_offsets("table_offsets", self.table_offsets, num_seqs, num_tables)?;
        let (batch, layout) = (*self, *layout);
        Ok((0..num_seqs).map(move |s| batch.sequence(&layout, s)))
    }

    /// Query rows of a batch whose offsets were checked.
    pub(crate) fn num_tokens(&self) -> usize {
        self.query_offsets.last().map_or(0, |&end| end as usize)
    }

    fn sequence(&self, layout: &CacheLayout, s: usize) -> Result<SequenceRows<'a>, KernelError> {
        let queries = self.query_offsets[s] as usize..self.query_offsets[s + 1] as usize;
        let table = self.table_offsets[s] as usize..self.table_offsets[s + 1] as usize;
        let table = &self.block_tables[table];
        let context_len = self.context_lens[s] as usize;
        if context_len < queries.len() {
            return Err(KernelError::ContextTooShort {
                sequence: s,
                num_queries: queries.len(),
                context_len,
            });
        }
        let num_blocks = context_len.div_ceil(layout.block_size);
        let Some(table) = table.get(..num_blocks) else {
            return Err(KernelError::TableTooShort {
                sequence: s,
                num_blocks: table.len(),
                block_size: layout.block_size,
                context_len,
            });
        };
        if let Some(&block) = table.iter().find(|&&b| b as usize >= layout.num_blocks) {
            return Err(KernelError::Block {
                block,
                num_blocks: layout.num_blocks,
            });
        }
        Ok(SequenceRows {
            queries,
            context_len,
            table,
        })
    }
}

fn check_offsets(
    name: &'static str,
    offsets: &[u32],
    num_seqs: usize,
    total: usize,
) -> Result<(), KernelError> {
    let is_right = offsets.len() == num_seqs + 1
        && offsets[0] == 0
        && offsets.is_sorted()
        && offsets[num_seqs] as usize <= total;
    if is_right {
        return Ok(());
    }
    Err(KernelError::Offsets {
        name,
        expected_len: num_seqs + 1,
        total,
    })
}
