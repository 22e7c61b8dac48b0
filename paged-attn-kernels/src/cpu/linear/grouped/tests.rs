use half::{bf16, f16};

use super::format::Block;
use super::*;
use crate::cpu::{Epilogue, LinearScratch, PackedMatrix, linear};

/// Numbers that look random, from a small linear congruential generator.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 32) as u32
    }

    /// In -1..1.
    fn number(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    }

    /// Inputs as models have them: mostly small, a few huge.
    fn inputs(&mut self, len: usize) -> Vec<f32> {
        let mut input = || match self.bits() % 50 {
            0 => 300.0 * self.number(),
            1 => 0.0,
            _ => self.number(),
        };
        (0..len).map(|_| input()).collect()
    }

    /// Blocks of random codes, with scales and minima that are numbers.
    fn blocks(&mut self, format: BlockFormat, num_weights: usize) -> Vec<u8> {
        let mut half = || f16::from_f32(0.1 * self.number()).to_le_bytes();
        let halves: Vec<[u8; 2]> = (0..num_weights).map(|_| half()).collect();
        let bytes = num_weights / format.block_len() * format.block_bytes();
        let mut blocks: Vec<u8> = (0..bytes).map(|_| self.bits() as u8).collect();
        for (block, halves) in blocks
            .chunks_exact_mut(format.block_bytes())
            .zip(halves.chunks(2))
        {
            if format == BlockFormat::Q6K {
                block[208..].copy_from_slice(&halves[0]);
            } else {
                block[..2].copy_from_slice(&halves[0]);
                if format.has_min() {
                    block[2..4].copy_from_slice(&halves[1]);
                }
            }
        }
        blocks
    }
}

/// The module's definition, one output after the other, straight from the file's blocks.
fn definition(format: BlockFormat, blocks: &[u8], x: &[f32]) -> f32 {
    let (group_len, block_len) = (format.group_len(), format.block_len());
    let (low_zero, high_zero) = format.zeros();
    let x: Vec<f32> = x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
    let (mut out, mut block) = (0.0f32, Block::empty());
    for (x, bytes) in x
        .chunks_exact(block_len)
        .zip(blocks.chunks_exact(format.block_bytes()))
    {
        block.read(format, bytes);
        let codes = &block.codes[..block_len];
        for (group, (x, codes)) in x
            .chunks_exact(group_len)
            .zip(codes.chunks_exact(group_len))
            .enumerate()
        {
            let low = |code: u8| (i32::from(code & 15) + low_zero) as f32;
            let high = |code: u8| (16 * i32::from(code >> 4) + high_zero) as f32;
            let chain = |parity: usize, part: &dyn Fn(u8) -> f32| {
                let terms = x.iter().zip(codes).skip(parity).step_by(2);
                terms.fold(0.0, |sum, (x, &code)| x.mul_add(part(code), sum))
            };
            let mut sum = 0.0;
            if format.high_bits() > 0 {
                sum += chain(0, &high) + chain(1, &high);
            }
            sum += chain(0, &low) + chain(1, &low);
            let (scale, min) = block.scale_min(format, group);
            out = sum.mul_add(scale, out);
            if format.has_min() {
                out = halves_sum(x).mul_add(min, out);
            }
        }
    }
    out
}

fn halves_sum(x: &[f32]) -> f32 {
    match x {
        [x] => *x,
        _ => {
            let (low, high) = x.split_at(x.len() / 2);
            let sums: Vec<f32> = low.iter().zip(high).map(|(a, b)| a + b).collect();
            halves_sum(&sums)
        }
    }
}

fn matrix(pool: &ThreadPool, format: BlockFormat, cols: usize, blocks: &[u8]) -> PackedMatrix {
    let row_bytes = cols / format.block_len() * format.block_bytes();
    let rows = blocks.len() / row_bytes;
    PackedMatrix::pack_blocks(pool, (rows, cols), format, |row, out| {
        out.copy_from_slice(&blocks[row * row_bytes..(row + 1) * row_bytes]);
    })
    .unwrap()
}

fn product(pool: &ThreadPool, isa: Isa, x: &[f32], w: &PackedMatrix) -> Vec<f32> {
    // Poisoned, so that an output that is not written shows.
    let mut out = vec![f32::NAN; x.len() / w.cols() * w.rows()];
    let mut scratch = LinearScratch::default();
    linear(pool, isa, &mut scratch, x, w, Epilogue::Store, &mut out).unwrap();
    out
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Shapes off every panel, step and tile: `(rows, cols in blocks, batch)`.
const SHAPES: [(usize, usize, usize); 8] = [
    (1, 1, 1),
    (15, 3, 2),
    (16, 2, 3),
    (17, 1, 5),
    (40, 25, 9),
    (33, 2, 17),
    (70, 3, 31),
    (16, 1, 300),
];

#[test]
fn every_back_end_computes_the_definition_bit_for_bit() {
    let pool = ThreadPool::new(3);
    let mut random = Random(1);
    for format in BlockFormat::ALL {
        for (rows, num_blocks, batch) in SHAPES {
            let cols = num_blocks * format.block_len();
            let blocks = random.blocks(format, rows * cols);
            let row_bytes = blocks.len() / rows;
            let x = random.inputs(batch * cols);
            let expected: Vec<f32> = x
                .chunks_exact(cols)
                .flat_map(|x| blocks.chunks_exact(row_bytes).map(move |row| (row, x)))
                .map(|(row, x)| definition(format, row, x))
                .collect();
            let w = matrix(&pool, format, cols, &blocks);
            for isa in Isa::all_supported() {
                let found = product(&pool, isa, &x, &w);
                assert_eq!(
                    bits(&found),
                    bits(&expected),
                    "{isa:?} {format:?} {rows} {cols} {batch}"
                );
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    let pool = ThreadPool::new(2);
    let mut random = Random(2);
    for isa in Isa::all_supported() {
        for format in [BlockFormat::Q4_1, BlockFormat::Q8_0, BlockFormat::Q6K] {
            let (rows, cols) = (48, 512);
            let blocks = random.blocks(format, rows * cols);
            let w = matrix(&pool, format, cols, &blocks);
            let x = random.inputs(70 * cols);
            let together = product(&pool, isa, &x, &w);
            for (x, together) in x.chunks_exact(cols).zip(together.chunks_exact(rows)) {
                assert_eq!(bits(&product(&pool, isa, x, &w)), bits(together));
            }
        }
    }
}

#[test]
fn only_the_rounding_of_inputs_is_lost() {
    let pool = ThreadPool::new(2);
    let mut random = Random(3);
    for format in BlockFormat::ALL {
        let (rows, cols, batch) = (16, 768, 4);
        let blocks = random.blocks(format, rows * cols);
        let w = matrix(&pool, format, cols, &blocks);
        let x = random.inputs(batch * cols);
        let found = product(&pool, Isa::detect(), &x, &w);
        let mut weights = vec![0.0; cols];
        for row in 0..rows {
            w.read_row(row, &mut weights);
            for (i, x) in x.chunks_exact(cols).enumerate() {
                let terms = || {
                    x.iter()
                        .zip(&weights)
                        .map(|(&x, &w)| f64::from(x) * f64::from(w))
                };
                // One part in 512 of each term, and some room for the sums' own rounding.
                let bound = terms().map(f64::abs).sum::<f64>() * (1.0 / 512.0 + 1e-4);
                let (found, expected) = (f64::from(found[i * rows + row]), terms().sum::<f64>());
                assert!(
                    (found - expected).abs() <= bound,
                    "{format:?}: {found} {expected}"
                );
            }
        }
    }
}

#[test]
fn rows_are_read_as_the_file_means_them() {
    let pool = ThreadPool::new(1);
    let mut random = Random(4);
    for format in BlockFormat::ALL {
        let cols = 2 * format.block_len();
        let blocks = random.blocks(format, 20 * cols);
        let w = matrix(&pool, format, cols, &blocks);
        let (mut found, mut block) = (vec![0.0; cols], Block::empty());
        let (low_zero, high_zero) = format.zeros();
        for (row, bytes) in blocks.chunks_exact(blocks.len() / 20).enumerate() {
            w.read_row(row, &mut found);
            for (i, x) in found.iter().enumerate() {
                let (index, at) = (i / format.block_len(), i % format.block_len());
                block.read(format, &bytes[index * format.block_bytes()..]);
                let (scale, min) = block.scale_min(format, at / format.group_len());
                let value = i32::from(block.codes[at]) + low_zero + high_zero;
                assert_eq!(*x, scale * value as f32 + min, "{format:?} {row} {i}");
            }
        }
    }
}

#[test]
fn stacked_parts_of_different_formats_come_in_order() {
    let pool = ThreadPool::new(2);
    let mut random = Random(5);
    let cols = 256;
    let formats = [BlockFormat::Q4K, BlockFormat::Q6K, BlockFormat::Q8_0];
    let blocks = formats.map(|format| random.blocks(format, 24 * cols));
    let parts = formats.iter().zip(&blocks);
    let alone: Vec<_> = parts
        .map(|(&format, b)| matrix(&pool, format, cols, b))
        .collect();
    let parts = formats.iter().zip(&blocks);
    let stacked = parts.map(|(&format, b)| matrix(&pool, format, cols, b));
    let stacked = PackedMatrix::stack(stacked.collect()).unwrap();
    let x = random.inputs(5 * cols);
    let found = product(&pool, Isa::detect(), &x, &stacked);
    for (i, w) in alone.iter().enumerate() {
        let expected = product(&pool, Isa::detect(), &x, w);
        for (found, expected) in found.chunks_exact(72).zip(expected.chunks_exact(24)) {
            assert_eq!(bits(&found[24 * i..24 * (i + 1)]), bits(expected));
        }
    }
    let other = matrix(
        &pool,
        BlockFormat::Q8_0,
        32,
        &random.blocks(BlockFormat::Q8_0, 32),
    );
    assert!(PackedMatrix::stack(vec![stacked, other]).is_err());
}

#[test]
fn a_row_of_broken_blocks_is_refused() {
    let pool = ThreadPool::new(1);
    let packed = PackedMatrix::pack_blocks(&pool, (4, 40), BlockFormat::Q4_0, |_, _| {});
    assert!(packed.err().unwrap().to_string().contains("whole blocks"));
}

#[test]
fn quantised_rows_come_back_within_half_a_step() {
    let pool = ThreadPool::new(1);
    let mut random = Random(6);
    let mut x: Vec<f32> = (0..128).map(|_| random.number()).collect();
    x[32..64].fill(0.25);
    x[64..96].fill(0.0);
    for (format, step) in [
        (BlockFormat::Q8_0, 2.0 / 254.0),
        (BlockFormat::Q4_1, 2.0 / 15.0),
    ] {
        let w = PackedMatrix::pack_blocks(&pool, (1, 128), format, |_, out| {
            quantise_row(format, &x, out);
        });
        let mut found = vec![0.0; 128];
        w.unwrap().read_row(0, &mut found);
        for (found, x) in found.iter().zip(&x) {
            assert!(
                (found - x).abs() <= 0.51 * step + 1e-3,
                "{format:?} {found} {x}"
            );
        }
    }
}
