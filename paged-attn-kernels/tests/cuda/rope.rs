//! Rotary position embedding on a device.

use crate::common::strided::{Strided, assert_close, place, same_bits, upload};
use crate::common::{Random, TestData, on_each};
use pageloom_paged_attn_kernels::cpu::{self, Heads, RopeAngles, ThreadPool};
use pageloom_paged_attn_kernels::cuda::elementwise::{
    Pairing, RopeArgs, Rotary, RotaryTable, rope,
};
use pageloom_paged_attn_kernels::cuda::{CudaError, Device, Stream};

const MAX_POSITION: usize = 50;

fn frequencies(rotary_dim: usize) -> Vec<f32> {
    let exponent = |i| -2.0 * i as f32 / rotary_dim as f32;
    (0..rotary_dim / 2)
        .map(|i| 10000f32.powf(exponent(i)))
        .collect()
}

/// A head, rotated in f64.
fn rotate(head: &mut [f64], position: u32, rotary_dim: usize, pairing: Pairing) {
    for (i, frequency) in frequencies(rotary_dim).into_iter().enumerate() {
        let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
        let (low, high) = match pairing {
            Pairing::HalfSplit => (i, i + rotary_dim / 2),
            Pairing::Interleaved => (2 * i, 2 * i + 1),
        };
        let (a, b) = (head[low], head[high]);
        (head[low], head[high]) = (a * cos - b * sin, b * cos + a * sin);
    }
}

/// Heads and their place in a row: offset and number of each kind.
struct Case {
    head_dim: usize,
    rotary_dim: usize,
    q: [usize; 2],
    k: [usize; 2],
    /// Before the first row, and after each.
    around: [usize; 2],
}

const fn case(dims: [usize; 2], q: [usize; 2], k: [usize; 2], around: [usize; 2]) -> Case {
    Case {
        head_dim: dims[0],
        rotary_dim: dims[1],
        q,
        k,
        around,
    }
}

/// Queries first or last, one kind absent, rotary dimensions off vectors.
const CASES: [Case; 7] = [
    case([64, 64], [0, 3], [192, 1], [0, 64]),
    case([128, 32], [128, 2], [0, 1], [8, 0]),
    case([80, 80], [0, 1], [80, 2], [0, 80]),
    case([64, 20], [64, 2], [0, 1], [0, 0]),
    case([6, 6], [1, 3], [20, 2], [1, 5]),
    case([16, 16], [0, 2], [32, 0], [0, 0]),
    case([16, 2], [0, 0], [16, 1], [3, 1]),
];

fn rotated<T: TestData>(device: &Device, stream: &Stream) {
    let mut random = Random::new(1);
    for pairing in [Pairing::HalfSplit, Pairing::Interleaved] {
        for case in CASES {
            let (head_dim, rotary_dim) = (case.head_dim, case.rotary_dim);
            let heads = |[offset, num_heads]: [usize; 2]| Heads {
                offset,
                num_heads,
                head_dim,
            };
            let (q, k) = (heads(case.q), heads(case.k));
            let width = 4 * head_dim + 8;
            let place = place(5, width, case.around[0], case.around[1]);
            let positions = [0, 1, 49, 7, 7];
            let table =
                RotaryTable::new(stream, &frequencies(rotary_dim), MAX_POSITION, pairing).unwrap();
            assert_eq!(
                (table.max_position(), table.rotary_dim()),
                (MAX_POSITION, rotary_dim)
            );
            let on_device = upload(device, stream, &positions);
            let mut x = Strided::<T>::random(stream, &mut random, place);
            let args = RopeArgs {
                x: x.rows_mut(),
                num_tokens: 5,
                width,
                q,
                k,
                rotary: Rotary {
                    positions: &on_device,
                    table: &table,
                },
            };
            rope(stream, &args).unwrap();
            let mut expected = x.f64s();
            for (row, position) in expected.chunks_mut(width).zip(positions) {
                for heads in [q, k] {
                    for i in 0..heads.num_heads {
                        let head = &mut row[heads.offset + i * head_dim..][..head_dim];
                        rotate(head, position, rotary_dim, pairing);
                    }
                }
            }
            let what = (head_dim, rotary_dim, pairing);
            assert_close(&x.download(stream), &expected, what);
        }
    }
}

#[test]
fn heads_turn_by_position_times_frequency() {
    for_each_type!(rotated);
}

#[test]
fn f32_heads_get_the_bits_of_the_cpu() {
    on_each(|device, stream| {
        let (width, positions) = (5 * 64, [3, 0, 41]);
        let heads = |offset, num_heads| Heads {
            offset,
            num_heads,
            head_dim: 64,
        };
        let (q, k) = (heads(0, 4), heads(256, 1));
        let table =
            RotaryTable::new(stream, &frequencies(64), MAX_POSITION, Pairing::HalfSplit).unwrap();
        let on_device = upload(device, stream, &positions);
        let mut x = Strided::random(stream, &mut Random::new(2), place(3, width, 0, 0));
        let args = RopeArgs {
            x: x.rows_mut(),
            num_tokens: 3,
            width,
            q,
            k,
            rotary: Rotary {
                positions: &on_device,
                table: &table,
            },
        };
        rope(stream, &args).unwrap();
        let (pool, mut angles) = (ThreadPool::new(1), RopeAngles::default());
        angles.compute(&positions, &frequencies(64));
        let mut expected: Vec<f32> = x.values.clone();
        cpu::rope(&pool, &mut expected, width, q, &angles).unwrap();
        cpu::rope(&pool, &mut expected, width, k, &angles).unwrap();
        assert!(same_bits(&x.download(stream), &expected));
    });
}

#[test]
fn positions_past_the_table_become_nan_and_wrong_shapes_are_refused() {
    on_each(|device, stream| {
        let table =
            RotaryTable::new(stream, &frequencies(16), MAX_POSITION, Pairing::HalfSplit).unwrap();
        let positions = upload(device, stream, &[49, 50, u32::MAX]);
        let heads = |head_dim| Heads {
            offset: 0,
            num_heads: 1,
            head_dim,
        };
        let none = |head_dim| Heads {
            num_heads: 0,
            ..heads(head_dim)
        };
        let mut x = Strided::<f32>::random(stream, &mut Random::new(3), place(4, 24, 0, 0));
        let mut turn = |num_tokens, head_dim| {
            let args = RopeArgs {
                x: x.rows_mut(),
                num_tokens,
                width: 24,
                q: heads(head_dim),
                k: none(head_dim),
                rotary: Rotary {
                    positions: &positions,
                    table: &table,
                },
            };
            rope(stream, &args)
        };
        turn(3, 16).unwrap();
        assert!(matches!(turn(4, 16), Err(CudaError::Kernel(_))));
        assert!(matches!(turn(3, 25), Err(CudaError::Kernel(_))));
        let error = turn(3, 8);
        assert!(matches!(
            error,
            Err(CudaError::Argument {
                name: "rotary_dim",
                ..
            })
        ));
        let found = x.download(stream);
        for (i, row) in found.chunks(24).enumerate() {
            let nan = i == 1 || i == 2;
            assert!(row[..16].iter().all(|x| x.is_nan() == nan), "{i}");
            assert!(row[16..].iter().all(|x| !x.is_nan()), "{i}");
        }
    });
}
