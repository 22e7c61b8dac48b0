use half::{bf16, f16};

use super::format::{Block, Scales};
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
        let num_blocks = num_weights / format.block_len();
        let halves: Vec<[u8; 2]> = (0..2 * num_blocks).map(|_| half()).collect();
        let bytes = num_blocks * format.block_bytes();
        let mut blocks: Vec<u8> = (0..bytes).map(|_| self.bits() as u8).collect();
        for (block, halves) in blocks
            .chunks_exact_mut(format.block_bytes())
            .zip(halves.chunks(2))
        {
            if format == BlockFormat::Q6K {
                block[208..].copy_from_slice(&halves[0]);
            } else {
                block[..2].copy_from_slice(&halves[0]);
                if matches!(format.scales(), Scales::ScaleMin | Scales::BlockScaleMin) {
                    block[2..4].copy_from_slice(&halves[1]);
                }
            }
        }
        blocks
    }
}

/// The module's definition of a row's weights, straight from the file's blocks.
fn weights(format: BlockFormat, blocks: &[u8]) -> Vec<f32> {
    let mut block = Block::empty();
    let mut weights = Vec::new();
    for bytes in blocks.chunks_exact(format.block_bytes()) {
        block.read(format, bytes);
        for (i, &code) in block.codes[..format.block_len()].iter().enumerate() {
            let (scale, min) = block.scale_min(format, i / format.group_len());
            let scale = scale * panel::SPREAD;
            let min = match format.zero() {
                0.0 => min * panel::SPREAD,
                zero => scale * -zero,
            };
            let weight = f32::from(code).mul_add(scale, min);
            weights.push(f32::from_bits(weight.to_bits() & 0xffff_0000));
        }
    }
    weights
}

/// The module's definition of an output.
fn definition(weights: &[f32], x: &[f32]) -> f32 {
    let x: Vec<f32> = x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
    let steps = x.chunks_exact(32).zip(weights.chunks_exact(32));
    steps.fold(0.0, |out, (x, w)| {
        let chain = |parity: usize| {
            let terms = x.iter().zip(w).skip(parity).step_by(2);
            terms.fold(0.0, |sum, (x, w)| x.mul_add(*w, sum))
        };
        out + (chain(0) + chain(1))
    })
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
const SHAPES: &[(usize, usize, usize)] = if cfg!(miri) {
    &[(2, 1, 5)]
} else {
    &[
        (1, 1, 1),
        (15, 3, 2),
        (16, 2, 3),
        (17, 1, 5),
        (40, 25, 9),
        (33, 2, 17),
        (33, 25, 40),
        (70, 3, 31),
        (16, 1, 300),
    ]
};

#[test]
fn every_back_end_computes_the_definition_bit_for_bit() {
    let pool = ThreadPool::new(3);
    let mut random = Random(1);
    for format in BlockFormat::ALL {
        for &(rows, num_blocks, batch) in SHAPES {
            let cols = num_blocks * format.block_len();
            let blocks = random.blocks(format, rows * cols);
            let row_bytes = blocks.len() / rows;
            let x = random.inputs(batch * cols);
            let weights: Vec<Vec<f32>> = blocks
                .chunks_exact(row_bytes)
                .map(|row| weights(format, row))
                .collect();
            let expected: Vec<f32> = x
                .chunks_exact(cols)
                .flat_map(|x| weights.iter().map(move |row| definition(row, x)))
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
    let (formats, (rows, cols, batch)): (&[_], _) = if cfg!(miri) {
        (&[BlockFormat::Q4_1], (2, 32, 5))
    } else {
        let formats = &[BlockFormat::Q4_1, BlockFormat::Q8_0, BlockFormat::Q6K];
        (formats, (48, 512, 70))
    };
    for isa in Isa::all_supported() {
        for &format in formats {
            let blocks = random.blocks(format, rows * cols);
            let w = matrix(&pool, format, cols, &blocks);
            let x = random.inputs(batch * cols);
            let together = product(&pool, isa, &x, &w);
            for (x, together) in x.chunks_exact(cols).zip(together.chunks_exact(rows)) {
                assert_eq!(bits(&product(&pool, isa, x, &w)), bits(together));
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "runs what the exact comparisons run")]
fn no_more_is_lost_than_the_rounding_of_inputs_and_weights() {
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
                // One part in 512 of each input, in 180 of each weight (stretched by ln 2 / 256 and
                // cut by up to 1 / 128), and some room for the sums' own rounding.
                let bound = terms().map(f64::abs).sum::<f64>() * (1.0 / 512.0 + 1.0 / 180.0 + 1e-4);
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
    let rows = if cfg!(miri) { 2 } else { 20 };
    for format in BlockFormat::ALL {
        let cols = 2 * format.block_len();
        let blocks = random.blocks(format, rows * cols);
        let w = matrix(&pool, format, cols, &blocks);
        let (mut found, mut block) = (vec![0.0; cols], Block::empty());
        for (row, bytes) in blocks.chunks_exact(blocks.len() / rows).enumerate() {
            w.read_row(row, &mut found);
            let of_blocks = bytes.chunks_exact(format.block_bytes());
            for (found, bytes) in found.chunks_exact(format.block_len()).zip(of_blocks) {
                block.read(format, bytes);
                for (at, x) in found.iter().enumerate() {
                    let (scale, min) = block.scale_min(format, at / format.group_len());
                    let value = f32::from(block.codes[at]) - format.zero();
                    assert_eq!(*x, scale * value + min, "{format:?} {row} {at}");
                }
            }
        }
    }
}

#[test]
fn stacked_parts_of_different_formats_come_in_order() {
    let pool = ThreadPool::new(2);
    let mut random = Random(5);
    let (rows, cols, batch) = if cfg!(miri) {
        (2, 256, 2)
    } else {
        (24, 256, 5)
    };
    let formats = [BlockFormat::Q4K, BlockFormat::Q6K, BlockFormat::Q8_0];
    let blocks = formats.map(|format| random.blocks(format, rows * cols));
    let parts = formats.iter().zip(&blocks);
    let alone: Vec<_> = parts
        .map(|(&format, b)| matrix(&pool, format, cols, b))
        .collect();
    let parts = formats.iter().zip(&blocks);
    let stacked = parts.map(|(&format, b)| matrix(&pool, format, cols, b));
    let stacked = PackedMatrix::stack(stacked.collect()).unwrap();
    let x = random.inputs(batch * cols);
    let found = product(&pool, Isa::detect(), &x, &stacked);
    for (i, w) in alone.iter().enumerate() {
        let expected = product(&pool, Isa::detect(), &x, w);
        for (found, expected) in found
            .chunks_exact(3 * rows)
            .zip(expected.chunks_exact(rows))
        {
            assert_eq!(bits(&found[rows * i..rows * (i + 1)]), bits(expected));
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
fn bf16_weights_are_multiplied_as_they_are() {
    let pool = ThreadPool::new(2);
    let mut random = Random(7);
    let shapes: &[(usize, usize, usize)] = if cfg!(miri) {
        &[(1, 32, 1), (17, 32, 5)]
    } else {
        &[(1, 32, 1), (40, 96, 3), (17, 640, 21), (64, 1600, 70)]
    };
    for &(rows, cols, batch) in shapes {
        let numbers = random.inputs(rows * cols);
        let w = PackedMatrix::pack_bf16(&pool, (rows, cols), |row, out| {
            out.copy_from_slice(&numbers[row * cols..(row + 1) * cols]);
        });
        let w = w.unwrap();
        let rounded: Vec<f32> = numbers
            .iter()
            .map(|&x| bf16::from_f32(x).to_f32())
            .collect();
        let mut row = vec![0.0; cols];
        w.read_row(rows - 1, &mut row);
        assert_eq!(row, rounded[(rows - 1) * cols..]);
        let x = random.inputs(batch * cols);
        let expected: Vec<f32> = x
            .chunks_exact(cols)
            .flat_map(|x| {
                rounded
                    .chunks_exact(cols)
                    .map(move |row| definition(row, x))
            })
            .collect();
        for isa in Isa::all_supported() {
            assert_eq!(
                bits(&product(&pool, isa, &x, &w)),
                bits(&expected),
                "{isa:?}"
            );
        }
    }
    assert!(PackedMatrix::pack_bf16(&pool, (4, 40), |_, _| {}).is_err());
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
