//! Maximum, exponentials and their sums over a row of logits.
//!
//! The exponential is written out instead of taken from the platform: the C
//! library's differs between machines in the last bit, and a draw must not.
//! Weights are rounded to whole units, so that their sums are exact and the
//! same in any order: a device that adds in another one draws the same token.

use crate::{RowError, TokenId};

/// Tokens whose weights share one partial sum, so that a draw skips most of the vocabulary.
///
/// In f64, sums of up to 2^13 weights are exact.
pub(super) const CHUNK: usize = 512;
/// Units in a weight of 1; every weight is a whole number of them.
///
/// What rounds to none has less than 5e-13 times the probability of the most
/// likely token: a vocabulary of 2^18 such tokens, less than 1.2e-7.
const UNITS: f64 = (1u64 << 40) as f64;
/// Weights under this one can have bits finer than a unit.
const COARSE: f32 = 1.0 / 131_072.0;
/// A sum of weights, in units.
pub(super) type Sum = u128;
const LANES: usize = 16;

/// Largest logit, after checking that all of them can be compared.
///
/// # Errors
/// [`RowError::NotANumber`] with the first token whose logit is NaN or
/// positive infinity; [`RowError::NothingAllowed`] when every logit is
/// negative infinity or there is none.
pub(super) fn max_logit(logits: &[f32]) -> Result<f32, RowError> {
    let mut best = [f32::NEG_INFINITY; LANES];
    // 0 * x is 0 for a finite x and NaN for any other: one flag for the whole row, without a branch.
    let mut finite = [0f32; LANES];
    let (rows, rest) = logits.as_chunks::<LANES>();
    for row in rows {
        for lane in 0..LANES {
            best[lane] = if row[lane] > best[lane] {
                row[lane]
            } else {
                best[lane]
            };
            finite[lane] += 0.0 * row[lane];
        }
    }
    for (lane, &x) in rest.iter().enumerate() {
        best[lane] = if x > best[lane] { x } else { best[lane] };
        finite[lane] += 0.0 * x;
    }
    if finite != [0.0; LANES] {
        let not_a_number = |&x: &f32| x.is_nan() || x == f32::INFINITY;
        if let Some(token) = logits.iter().position(not_a_number) {
            let token = token as TokenId;
            return Err(RowError::NotANumber { token });
        }
    }
    let max = best.into_iter().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        return Err(RowError::NothingAllowed);
    }
    Ok(max)
}

/// `e^x` for `x <= 0`, with a relative error under 3e-7; under -87 it is that of -87, 1.6e-38.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`, the polynomial of degree five with
/// the least relative error to `e^r` among those that give 1 for 0, and `2^n`
/// put into the exponent. No fused multiply-add, no call: every machine
/// computes the same bits, and the loop vectorises.
#[inline(always)]
pub(super) fn exp_nonpositive(x: f32) -> f32 {
    const SMALLEST: f32 = -87.0;
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, which is left in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has few enough bits for n * LN2_HIGH to be exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x > SMALLEST { x } else { SMALLEST };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 0.008_290_306;
    for c in [0.041_897_975, 0.166_676_37, 0.499_991_5, 0.999_999_7, 1.0] {
        p = p * r + c;
    }
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits());
    let power = f32::from_bits(exponent.wrapping_add(127) << 23);
    p * power
}

/// `e^x` for `x <= 0`, rounded to whole units, ties to even.
#[inline(always)]
pub(super) fn weight(x: f32) -> f32 {
    let e = exp_nonpositive(x);
    // Between COARSE and its double, the last bit of an f32 is a unit: adding COARSE rounds to it.
    let shift = if e < COARSE { COARSE } else { 0.0 };
    (e + shift) - shift
}

/// A weight, or the exact sum of up to 2^13 of them, in units.
#[inline(always)]
pub(super) fn units(sum: f64) -> u64 {
    (sum * UNITS) as u64
}

/// Sum of at most [`CHUNK`] weights, in units.
pub(super) fn sum(weights: &[f32]) -> u64 {
    sum_where(weights, |_| true)
}

/// Sum of those of at most [`CHUNK`] weights that are `likely`, in units.
#[inline(always)]
pub(super) fn sum_where(weights: &[f32], likely: impl Fn(f32) -> bool) -> u64 {
    debug_assert!(weights.len() <= CHUNK);
    let term = |w: f32| if likely(w) { f64::from(w) } else { 0.0 };
    let mut lanes = [0f64; 8];
    let (rows, rest) = weights.as_chunks::<8>();
    for row in rows {
        for lane in 0..8 {
            lanes[lane] += term(row[lane]);
        }
    }
    for (lane, &x) in rest.iter().enumerate() {
        lanes[lane] += term(x);
    }
    units(lanes.iter().sum())
}

/// Weights, `e^((x - max) / temperature)`, and their sums by [`CHUNK`], in units.
pub(super) fn weigh(
    logits: &[f32],
    max: f32,
    temperature: f32,
    weights: &mut Vec<f32>,
    chunk_sums: &mut Vec<u64>,
) {
    weights.resize(logits.len(), 0.0);
    chunk_sums.clear();
    for (block, chunk) in weights.chunks_mut(CHUNK).zip(logits.chunks(CHUNK)) {
        for (w, &x) in block.iter_mut().zip(chunk) {
            // Divided, not multiplied by the inverse: a temperature of 1e-39 has none.
            *w = weight((x - max) / temperature);
        }
        chunk_sums.push(sum(block));
    }
}

/// Logarithm of the sum of `e^x` over the row.
///
/// # Errors
/// As [`max_logit`].
pub(super) fn log_sum_exp(logits: &[f32]) -> Result<f64, RowError> {
    let max = max_logit(logits)?;
    let mut block = [0f32; CHUNK];
    let mut total: Sum = 0;
    for chunk in logits.chunks(CHUNK) {
        for (w, &x) in block.iter_mut().zip(chunk) {
            *w = weight(x - max);
        }
        total += Sum::from(sum(&block[..chunk.len()]));
    }
    Ok(f64::from(max) + (total as f64 / UNITS).ln())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_is_right_to_three_in_ten_million() {
        let mut worst = 0f64;
        for i in 0..870_000 {
            let x = -(i as f32) * 1e-4;
            let want = f64::from(x).exp();
            worst = worst.max((f64::from(exp_nonpositive(x)) - want).abs() / want);
        }
        assert!(worst < 3e-7, "{worst}");
        assert_eq!(exp_nonpositive(0.0), 1.0);
        let least = exp_nonpositive(-87.0);
        assert_eq!(exp_nonpositive(-87.1), least);
        assert_eq!(exp_nonpositive(f32::MIN), least);
        assert_eq!(exp_nonpositive(f32::NEG_INFINITY), least);
    }

    #[test]
    fn weights_are_whole_units_next_to_the_exponential() {
        for i in 0..870_000 {
            let x = -(i as f32) * 1e-4;
            let w = f64::from(weight(x));
            assert_eq!(w * UNITS, (w * UNITS).trunc());
            assert!((w - f64::from(exp_nonpositive(x))).abs() * UNITS <= 0.5);
        }
        assert_eq!((weight(0.0), weight(f32::NEG_INFINITY)), (1.0, 0.0));
    }

    #[test]
    fn sums_are_the_same_in_any_order() {
        let mut weights: Vec<f32> = (0..CHUNK).map(|i| weight(-(i as f32) * 0.06)).collect();
        let want = sum(&weights);
        let each: u64 = weights.iter().map(|&w| units(f64::from(w))).sum();
        assert_eq!(each, want);
        weights.reverse();
        assert_eq!(sum(&weights), want);
        weights.rotate_left(100);
        assert_eq!(sum(&weights), want);
    }

    #[test]
    fn not_a_number_is_found_in_every_lane() {
        for at in 0..37 {
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY] {
                let mut logits = vec![0.5; 37];
                logits[at] = bad;
                let token = at as TokenId;
                assert_eq!(max_logit(&logits), Err(RowError::NotANumber { token }));
            }
        }
    }

    #[test]
    fn a_row_of_nothing_has_no_maximum() {
        assert_eq!(max_logit(&[]), Err(RowError::NothingAllowed));
        assert_eq!(
            max_logit(&[f32::NEG_INFINITY; 20]),
            Err(RowError::NothingAllowed)
        );
    }

    #[test]
    fn log_sum_exp_survives_large_logits() {
        let got = log_sum_exp(&[1e30, 1e30]).unwrap();
        assert!((got - (f64::from(1e30f32) + 2f64.ln())).abs() < 1e15);
        let got = log_sum_exp(&[-700.0, -701.0, f32::NEG_INFINITY]).unwrap();
        assert!((got - (-700.0 + (1.0 + (-1f64).exp()).ln())).abs() < 1e-6);
    }
}
