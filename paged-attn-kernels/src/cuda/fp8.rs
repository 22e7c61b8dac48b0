//! Eight-bit floats, e4m3: 4 bits of exponent, 3 of mantissa, no infinities.

use crate::element::scale_to;

/// Largest number.
const LARGEST: f32 = 448.0;

/// Smallest number with all bits of precision: 2^-6.
const SMALLEST_NORMAL: f32 = 0.015625;

/// Adding this to a number below 2^-6 rounds it to a multiple of 2^-9, ties to even.
const ROUND: f32 = 16384.0;

/// The number that `bits` stand for; 0x7f and 0xff are NaN.
pub fn decode(bits: u8) -> f32 {
    let magnitude = bits & 0x7f;
    if magnitude == 0x7f {
        return f32::NAN;
    }
    // A float whose exponent is 120 too small; subnormals come out right too.
    let small = f32::from_bits(u32::from(bits & 0x80) << 24 | u32::from(magnitude) << 20);
    small * f32::from_bits((127 + 120) << 23)
}

/// The number nearest to `x`, ties to even; 448 for magnitudes above it, NaN for NaN.
///
/// As `cuda/compress.cuh` computes it, step by step.
pub fn encode(x: f32) -> u8 {
    let bits = x.to_bits();
    let (sign, magnitude) = ((bits >> 24 & 0x80) as u8, bits & 0x7fff_ffff);
    if magnitude > 0x7f80_0000 {
        return sign | 0x7f;
    }
    if magnitude >= LARGEST.to_bits() {
        return sign | 0x7e;
    }
    // Below 2^-6 numbers are multiples of 2^-9, which is what this sum is rounded to.
    if magnitude < SMALLEST_NORMAL.to_bits() {
        let sum = f32::from_bits(magnitude) + ROUND;
        return sign | (sum.to_bits() - ROUND.to_bits()) as u8;
    }
    // Keeps 3 bits of the fraction; a carry goes on into the exponent.
    let rounded = magnitude + 0x7_ffff + (magnitude >> 20 & 1);
    sign | ((rounded >> 20) - (120 << 3)) as u8
}

/// One token's key or value of a head as fp8 pages hold it: its scale, and its numbers into `codes`.
///
/// The scale is the largest magnitude over 448; NaN for a row with an infinity or a NaN, 0 for one
/// below 448 times the smallest normal number (5.3e-36).
///
/// # Panics
/// If `codes` is not as long as `row`.
pub fn encode_row(row: &[f32], codes: &mut [u8]) -> f32 {
    assert_eq!(row.len(), codes.len(), "a code for each number");
    let (scale, inverse) = scale_to(LARGEST, row);
    for (code, x) in codes.iter_mut().zip(row) {
        *code = encode(x * inverse);
    }
    scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_encoded_as_itself() {
        for bits in (0..=255u8).filter(|bits| bits & 0x7f != 0x7f) {
            assert_eq!(encode(decode(bits)), bits);
        }
        assert_eq!((encode(f32::NAN), encode(-f32::NAN)), (0x7f, 0xff));
        assert_eq!((encode(f32::INFINITY), encode(-1e9)), (0x7e, 0xfe));
    }

    #[test]
    fn numbers_between_two_go_to_the_nearer_and_ties_to_the_even_one() {
        for low in 0..0x7e_u8 {
            let (a, b) = (decode(low), decode(low + 1));
            // Exact in f32.
            let middle = (a + b) / 2.0;
            let even = if low % 2 == 0 { low } else { low + 1 };
            assert_eq!(encode(middle), even, "{middle}");
            assert_eq!(encode(-middle), even | 0x80, "{middle}");
            assert_eq!(encode(middle.next_down()), low, "{middle}");
            assert_eq!(encode(middle.next_up()), low + 1, "{middle}");
        }
    }

    #[test]
    fn rows_keep_their_largest_number_and_say_what_is_broken() {
        let mut codes = [0; 3];
        let scale = encode_row(&[3.5, -0.875, 0.0], &mut codes);
        assert_eq!((scale, codes), (3.5 / 448.0, [0x7e, 0xee, 0]));
        assert!(encode_row(&[1.0, f32::NAN, 0.0], &mut codes).is_nan());
        assert!(encode_row(&[1.0, f32::INFINITY, 0.0], &mut codes).is_nan());
        assert_eq!(encode_row(&[1e-36, -1e-37, 0.0], &mut codes), 0.0);
        assert_eq!(codes, [0, 0x80, 0]);
        let scale = encode_row(&[f32::MAX, 0.0, 0.0], &mut codes);
        assert!((scale * decode(codes[0])).is_finite());
    }

    #[test]
    fn numbers_are_those_of_the_format() {
        // Micikevicius et al. 2022, "FP8 formats for deep learning", table 1.
        assert_eq!(decode(0x7e), 448.0);
        assert_eq!(decode(0x08), 0.015625);
        assert_eq!(decode(0x07), 0.875 * 0.015625);
        assert_eq!(decode(0x81), -0.001953125);
        assert_eq!(decode(0x38), 1.0);
        assert_eq!(decode(0), 0.0);
        assert!(decode(0x7f).is_nan() && decode(0xff).is_nan());
    }
}
