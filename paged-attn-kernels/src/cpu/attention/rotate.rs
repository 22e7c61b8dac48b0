//! Queries for rotated keys.

use crate::cpu::simd::{LANES, Simd};
use crate::element::Element;

/// Does to a query what was done to int8 keys, with the same bits on every instruction set.
///
/// In vectors, since a query is rotated in every layer: left to the compiler, 64 numbers took 200
/// cycles, a third of a short prompt's attention.
#[inline(always)]
pub(super) fn rotate<S: Simd>(simd: S, row: &mut [f32]) {
    let len = 1 << row.len().trailing_zeros();
    if len < LANES {
        return i8::rotate(row);
    }
    let mut half = len / 2;
    while half >= LANES {
        for pair in row.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low
                .chunks_exact_mut(LANES)
                .zip(high.chunks_exact_mut(LANES))
            {
                // SAFETY: both chunks have 16 elements.
                unsafe {
                    let (x, y) = (simd.load(a.as_ptr()), simd.load(b.as_ptr()));
                    simd.store(a.as_mut_ptr(), simd.add(x, y));
                    simd.store(b.as_mut_ptr(), simd.sub(x, y));
                }
            }
        }
        half /= 2;
    }
    let norm = simd.splat(1.0 / (len as f32).sqrt());
    for lanes in row.chunks_exact_mut(LANES) {
        // SAFETY: the chunk has 16 elements.
        let mut x = unsafe { simd.load(lanes.as_ptr()) };
        x = butterfly::<S, 8>(simd, x);
        x = butterfly::<S, 4>(simd, x);
        x = butterfly::<S, 2>(simd, x);
        x = butterfly::<S, 1>(simd, x);
        // SAFETY: as the load.
        unsafe { simd.store(lanes.as_mut_ptr(), simd.mul(x, norm)) };
    }
}

/// Lanes without the bit HALF become the sum with their partner, the others its difference.
#[inline(always)]
fn butterfly<S: Simd, const HALF: usize>(simd: S, x: S::F) -> S::F {
    let signs: [f32; LANES] = std::array::from_fn(|i| if i & HALF == 0 { 1.0 } else { -1.0 });
    // SAFETY: 16 elements.
    let signs = unsafe { simd.load(signs.as_ptr()) };
    // A product with 1 or -1 is exact, so this rounds once, as an addition does.
    simd.fma(x, signs, simd.swap_blocks::<HALF>(x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;
    use crate::cpu::simd::{Kernel, dispatch};

    struct Rotate<'a>(&'a mut [f32]);

    impl Kernel for Rotate<'_> {
        type Output = ();
        #[inline(always)]
        fn call<S: Simd>(self, simd: S) {
            rotate(simd, self.0);
        }
    }

    #[test]
    fn queries_are_rotated_as_keys_are_to_the_bit() {
        for len in (8..=256).step_by(8) {
            let row: Vec<f32> = (0..len).map(|i| (i as f32 * 1.3).sin() * 7.0).collect();
            let mut expected = row.clone();
            i8::rotate(&mut expected);
            for isa in Isa::all_supported() {
                let mut found = row.clone();
                dispatch(isa, Rotate(&mut found));
                assert_eq!(found, expected, "{len} {isa:?}");
            }
        }
    }
}
