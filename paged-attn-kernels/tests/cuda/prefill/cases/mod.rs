//! Runs prefill attention: pages with random contents, items made by hand, an f64 reference.

mod device;
mod launch;
mod pages;
mod reference;

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};

pub(crate) use self::device::attend_on;
pub(crate) use self::launch::{Output, launch};
pub(crate) use self::pages::Kv;
use crate::common::Random;

/// One launch.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) head_dim: usize,
    pub(crate) kv: Kv,
    /// Activations are f16, not bf16.
    pub(crate) f16: bool,
    pub(crate) block_size: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) group: usize,
    pub(crate) window: usize,
    pub(crate) soft_cap: f32,
    /// Of each sequence: query rows, and keys before them.
    pub(crate) sequences: Vec<(usize, usize)>,
    /// Pieces that the keys of each item are cut into.
    pub(crate) splits: usize,
    pub(crate) seed: u64,
}

impl Case {
    pub(crate) fn new(head_dim: usize, kv: Kv, chunk: usize, prefix: usize) -> Self {
        Self {
            head_dim,
            kv,
            f16: kv == Kv::F16,
            block_size: 16,
            num_kv_heads: 1,
            group: 1,
            window: 0,
            soft_cap: 0.0,
            sequences: vec![(chunk, prefix)],
            splits: 1,
            seed: 7,
        }
    }

    fn num_tokens(&self) -> usize {
        self.sequences.iter().map(|s| s.0).sum()
    }

    fn num_heads(&self) -> usize {
        self.num_kv_heads * self.group
    }

    /// Of q and out: a row, and a gap that nobody may write.
    fn stride(&self) -> usize {
        self.num_heads() * self.head_dim + 8
    }

    fn scale(&self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }

    fn tile_rows(&self) -> usize {
        if self.head_dim <= 128 { 128 } else { 64 }
    }

    fn encode(&self, x: f32) -> u16 {
        match self.f16 {
            true => f16::from_f32(x).to_bits(),
            false => bf16::from_f32(x).to_bits(),
        }
    }

    fn decode(&self, bits: u16) -> f64 {
        match self.f16 {
            true => f16::from_bits(bits).to_f64(),
            false => bf16::from_bits(bits).to_f64(),
        }
    }

    /// `PrefillShape::SHARED_BYTES`.
    fn shared_bytes(&self) -> u32 {
        let keys = if self.head_dim >= 128 && self.kv.scaled() {
            32
        } else {
            64
        };
        let chunks = self.head_dim / 16;
        let lanes = if chunks <= 4 { 4 } else { 8 };
        let raw = keys * lanes * chunks.div_ceil(lanes) * 16;
        let scaled = if self.kv.scaled() {
            2 * raw + 16 * keys
        } else {
            0
        };
        let tiles = (self.tile_rows() + 2 * keys) * self.head_dim * 2;
        (tiles + scaled + self.tile_rows() * 16 + keys * 5 + 48) as u32
    }
}

#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Item {
    first_row: u32,
    first_position: u32,
    first_packed: u32,
    num_packed: u32,
    kv_head: u32,
    table_offset: u32,
    kv_begin: u32,
    kv_end: u32,
    partial: u32,
}

/// A sequence's rows, blocks and the keys it holds.
struct Sequence {
    first_row: usize,
    chunk: usize,
    prefix: usize,
    table_offset: usize,
    table: Vec<u32>,
}

/// What a launch reads, on the host.
pub(crate) struct Input {
    case: Case,
    sequences: Vec<Sequence>,
    /// One layer, as `KvCache` lays it out; 0xff where no row of any sequence looks.
    pages: Vec<u8>,
    block_bytes: usize,
    q: Vec<u16>,
}

impl Input {
    pub(crate) fn new(case: &Case) -> Self {
        let mut random = Random::new(case.seed);
        let blocks_of = |s: &(usize, usize)| (s.0 + s.1).div_ceil(case.block_size);
        let num_blocks = case.sequences.iter().map(blocks_of).sum::<usize>() + 2;
        let order = random.permutation(num_blocks);
        let (mut sequences, mut row, mut table_offset) = (Vec::new(), 0, 0);
        for s in &case.sequences {
            let table = order[table_offset..table_offset + blocks_of(s)].to_vec();
            let num_blocks = table.len();
            sequences.push(Sequence {
                first_row: row,
                chunk: s.0,
                prefix: s.1,
                table_offset,
                table,
            });
            (row, table_offset) = (row + s.0, table_offset + num_blocks);
        }
        let tokens = case.num_kv_heads * case.block_size;
        let scales = if case.kv.scaled() { 8 * tokens } else { 0 };
        let block_bytes = 2 * tokens * case.head_dim * case.kv.bytes() + scales;
        let q = (0..case.num_tokens() * case.stride())
            .map(|_| case.encode(random.normal() * 2.0))
            .collect();
        let mut input = Self {
            case: case.clone(),
            sequences,
            pages: vec![0xff; num_blocks * block_bytes],
            block_bytes,
            q,
        };
        input.fill_pages(&mut random);
        input
    }

    fn fill_pages(&mut self, random: &mut Random) {
        let case = self.case.clone();
        for s in 0..self.sequences.len() {
            let seq = &self.sequences[s];
            let first = first_visible(&case, seq.prefix);
            for key in first..seq.prefix + seq.chunk {
                for head in 0..case.num_kv_heads {
                    for values in [false, true] {
                        let (row, scale) = self.place(s, key, head, values);
                        for d in 0..case.head_dim {
                            let bytes = case.kv.random(random);
                            self.pages[row + d * bytes.len()..][..bytes.len()]
                                .copy_from_slice(&bytes);
                        }
                        if case.kv.scaled() {
                            self.pages[scale..scale + 4]
                                .copy_from_slice(&case.kv.scale(random).to_le_bytes());
                        }
                    }
                }
            }
        }
    }

    /// Bytes at which a key (or value) and its scale are.
    fn place(&self, sequence: usize, key: usize, head: usize, values: bool) -> (usize, usize) {
        let case = &self.case;
        let block =
            self.sequences[sequence].table[key / case.block_size] as usize * self.block_bytes;
        let (tokens, values) = (case.num_kv_heads * case.block_size, usize::from(values));
        let token = head * case.block_size + key % case.block_size;
        let row_bytes = case.head_dim * case.kv.bytes();
        (
            block + (values * tokens + token) * row_bytes,
            block + 2 * tokens * row_bytes + (values * tokens + token) * 4,
        )
    }

    /// Makes a key's first number NaN, or its scale.
    pub(crate) fn break_key(&mut self, sequence: usize, key: usize) {
        let (row, scale) = self.place(sequence, key, 0, false);
        let at = if self.case.kv.scaled() { scale } else { row };
        let num_bytes = if self.case.kv.scaled() { 4 } else { 2 };
        self.pages[at..at + num_bytes].fill(0xff);
    }

    /// Makes a value zero.
    pub(crate) fn clear_value(&mut self, sequence: usize, key: usize) {
        let (row, _) = self.place(sequence, key, 0, true);
        self.pages[row..row + self.case.head_dim * self.case.kv.bytes()].fill(0);
    }

    fn items(&self) -> Vec<Item> {
        let case = &self.case;
        let (mut items, mut partial) = (Vec::new(), 0);
        for seq in &self.sequences {
            for kv_head in 0..case.num_kv_heads {
                for first in (0..seq.chunk * case.group).step_by(case.tile_rows()) {
                    let num = (seq.chunk * case.group - first).min(case.tile_rows());
                    let begin = first_visible(case, seq.prefix + first / case.group);
                    let end = seq.prefix + (first + num - 1) / case.group + 1;
                    let cut = |i: usize| begin + (end - begin) * i / case.splits;
                    for piece in 0..case.splits {
                        items.push(Item {
                            first_row: seq.first_row as u32,
                            first_position: seq.prefix as u32,
                            first_packed: first as u32,
                            num_packed: num as u32,
                            kv_head: kv_head as u32,
                            table_offset: seq.table_offset as u32,
                            kv_begin: cut(piece) as u32,
                            kv_end: cut(piece + 1) as u32,
                            partial: if case.splits == 1 { u32::MAX } else { partial },
                        });
                        partial += num as u32;
                    }
                }
            }
        }
        items.reverse();
        items
    }
}

fn first_visible(case: &Case, position: usize) -> usize {
    if case.window == 0 {
        0
    } else {
        (position + 1).saturating_sub(case.window)
    }
}

fn dense(case: &Case, out: &[u16]) -> Vec<f64> {
    let rows = out.chunks_exact(case.stride()).take(case.num_tokens());
    rows.flat_map(|row| row[..case.stride() - 8].iter().map(|&x| case.decode(x)))
        .collect()
}
