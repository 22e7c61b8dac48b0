//! Elements of a page: how a number becomes one, and what it is read as.

use bytemuck::Pod;
use half::bf16;

/// Largest integer of a compressed page; the range is symmetric.
const INT8_MAX: f32 = 127.0;

/// Numbers that are rotated at once.
const LANES: usize = 16;

/// Adding this to an |x| < 2^22 rounds it to an integer, ties to even, in the sum's low bits.
const ROUND: f32 = 12_582_912.0;

/// An element of a page.
pub(crate) trait Element: Pod + Send + Sync {
    /// Whether the keys and values have a scale each, stored behind their panel.
    const SCALED: bool;

    /// The scale that one token's key or value of one head is stored with, and what its numbers
    /// are multiplied by first.
    fn scale_of(_row: &[f32]) -> (f32, f32) {
        (1.0, 1.0)
    }

    /// Turns a key into what is stored, and a query into what that is multiplied with.
    fn rotate(_key_or_query: &mut [f32]) {}

    /// Turns a key that was read back.
    fn rotate_back(key: &mut [f32]) {
        // The transform is its own inverse.
        Self::rotate(key);
    }

    /// Rounds to nearest, ties to even. `inverse` is from [`scale_of`](Self::scale_of).
    fn encode(x: f32, inverse: f32) -> Self;

    /// Exact; without the scale.
    fn to_f32(self) -> f32;
}

impl Element for f32 {
    const SCALED: bool = false;

    #[inline(always)]
    fn encode(x: f32, _: f32) -> Self {
        x
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Element for bf16 {
    const SCALED: bool = false;

    #[inline(always)]
    fn encode(x: f32, _: f32) -> Self {
        bf16::from_f32(x)
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// Multiplies by the orthonormal Walsh-Hadamard matrix, which is its own inverse, in blocks of the
/// largest power of two that divides the length.
///
/// Each number becomes the sum of all numbers of its block, each with one of both signs, over the
/// square root of their count. Additions and one product in a fixed order: the same bits on every
/// instruction set.
#[inline(always)]
fn hadamard(row: &mut [f32]) {
    let len = 1 << row.len().trailing_zeros();
    let norm = 1.0 / (len as f32).sqrt();
    // Distances of whole vectors first, then those within one.
    let mut half = len / 2;
    while half >= LANES {
        for pair in row.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half /= 2;
    }
    if len < LANES {
        row.chunks_exact_mut(8)
            .for_each(|lanes| within::<8>(lanes, norm));
    } else {
        row.chunks_exact_mut(LANES)
            .for_each(|lanes| within::<LANES>(lanes, norm));
    }
}

/// The butterflies of less than N lanes, and the norm.
///
/// Written lane by lane, so that the compiler sees shuffles.
#[inline(always)]
fn within<const N: usize>(lanes: &mut [f32], norm: f32) {
    let Ok(lanes) = <&mut [f32; N]>::try_from(lanes) else {
        return;
    };
    let mut x = *lanes;
    let butterfly = |x: [f32; N], half: usize| -> [f32; N] {
        std::array::from_fn(|i| {
            let other = x[i ^ half];
            if i & half == 0 {
                x[i] + other
            } else {
                other - x[i]
            }
        })
    };
    if N > 8 {
        x = butterfly(x, 8);
    }
    x = butterfly(x, 4);
    x = butterfly(x, 2);
    x = butterfly(x, 1);
    *lanes = x.map(|x| x * norm);
}

/// The scale at which a row's largest magnitude is `top`, and what to multiply numbers by to get
/// there: NaN and 0 for a row with an infinity or a NaN, 0 and 0 for one whose scale would be below
/// the smallest normal number.
#[inline]
pub(crate) fn scale_to(top: f32, row: &[f32]) -> (f32, f32) {
    // Magnitudes order as their bits do, infinities and NaNs last.
    let magnitude = |x: &f32| (x.to_bits() & 0x7fff_ffff) as i32;
    let largest = row.iter().map(magnitude).fold(0, i32::max);
    let largest = f32::from_bits(largest as u32);
    if !largest.is_finite() {
        return (f32::NAN, 0.0);
    }
    // A few ulp below the largest f32, so that the product with the scale stays finite.
    let scale = largest.min(f32::MAX * (1.0 - 4.0 * f32::EPSILON)) / top;
    if scale < f32::MIN_POSITIVE {
        return (0.0, 0.0);
    }
    (scale, top / largest)
}

impl Element for i8 {
    const SCALED: bool = true;

    /// Spreads the few large dimensions that keys of trained models have over all: products of
    /// queries and keys stay what they are, and the largest magnitude, which sets the scale, gets
    /// smaller. Halves the error of SmolLM2's log-probabilities (2.4e-2 to 1.3e-2 on average);
    /// rotated values gain next to nothing.
    ///
    /// Source: Ashkboos et al. 2024, "QuaRot".
    #[inline(always)]
    fn rotate(row: &mut [f32]) {
        hadamard(row);
    }

    /// The largest magnitude over 127.
    ///
    /// A row with an infinity or a NaN gets the scale NaN and reads as NaN throughout: what went
    /// wrong is not hidden by clipping it. A row below 127 times the smallest normal number
    /// (1.5e-36) gets 0 and reads as zeros.
    #[inline]
    fn scale_of(row: &[f32]) -> (f32, f32) {
        scale_to(INT8_MAX, row)
    }

    #[inline(always)]
    fn encode(x: f32, inverse: f32) -> Self {
        // `x * inverse` is within 127 and a rounding error, which does not reach 127.5. Zero
        // times an infinity is a NaN, whose low bits do not matter: the scale is NaN then.
        (x * inverse + ROUND).to_bits() as i8
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(row: &[f32]) -> Vec<f32> {
        let (scale, inverse) = i8::scale_of(row);
        let read = |&x: &f32| i8::encode(x, inverse).to_f32() * scale;
        row.iter().map(read).collect()
    }

    #[test]
    fn int8_is_within_half_a_scale_and_keeps_the_largest() {
        for exponent in -118..127 {
            let largest = 1.37f32 * f32::powi(2.0, exponent);
            let row: Vec<f32> = (-500..=500).map(|i| largest * (i as f32 / 500.0)).collect();
            let found = round_trip(&row);
            // A ten-thousandth for the rounding of the inverse and of the product.
            let bound = largest / 127.0 * 0.5001;
            for (x, y) in row.iter().zip(&found) {
                assert!((x - y).abs() <= bound, "{x} {y} of {largest}");
            }
            assert!((found[1000] - largest).abs() <= largest * 1.2e-7);
            assert_eq!(found[0], -found[1000]);
            assert_eq!(found[500], 0.0);
        }
    }

    #[test]
    fn a_rotation_keeps_products_and_undoes_itself() {
        for len in [8, 24, 40, 64, 80, 256] {
            let a: Vec<f32> = (0..len).map(|i| (i as f32 * 1.3).sin()).collect();
            let b: Vec<f32> = (0..len).map(|i| (i as f32 * 0.7).cos() * 3.0).collect();
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            let (mut turned_a, mut turned_b) = (a.clone(), b.clone());
            i8::rotate(&mut turned_a);
            i8::rotate(&mut turned_b);
            assert!(turned_a.iter().zip(&a).any(|(x, y)| (x - y).abs() > 0.1));
            assert!((dot(&turned_a, &turned_b) - dot(&a, &b)).abs() < 1e-4);
            i8::rotate_back(&mut turned_a);
            let same = |(x, y): (&f32, &f32)| (x - y).abs() < 1e-6;
            assert!(turned_a.iter().zip(&a).all(same), "{len}");
        }
    }

    #[test]
    fn int8_rounds_ties_to_even() {
        let row = [127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5];
        assert_eq!(
            round_trip(&row),
            [127.0, 0.0, 2.0, 2.0, 0.0, -2.0, -2.0, 126.0]
        );
    }

    #[test]
    fn int8_rows_that_are_tiny_read_as_zeros_and_broken_ones_as_nan() {
        let tiny = f32::MIN_POSITIVE;
        for row in [
            [0.0, -0.0],
            [tiny, -tiny],
            [1e-45, 0.0],
            [100.0 * tiny, 0.0],
        ] {
            assert_eq!(round_trip(&row), [0.0, 0.0], "{row:?}");
        }
        for row in [
            [f32::NAN, 1.0],
            [1.0, f32::INFINITY],
            [f32::NEG_INFINITY, 0.0],
        ] {
            assert!(round_trip(&row).iter().all(|x| x.is_nan()), "{row:?}");
        }
        let huge = [f32::MAX, -f32::MAX];
        assert!(round_trip(&huge).iter().all(|x| x.is_finite()));
    }
}
