//! Rounding other than to nearest even, by exact error terms.

/// How a result is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    Nearest,
    Zero,
    Down,
    Up,
}

/// An f64 and what is missing from it, rounded to f32.
///
/// `error` is the exact value minus `value`; only its sign and whether it is zero matter.
pub(crate) fn narrow(value: f64, error: f64, rounding: Rounding) -> f32 {
    let nearest = value as f32;
    if nearest.is_nan() || rounding == Rounding::Nearest || value.is_infinite() {
        return nearest;
    }
    // Whether the exact value lies above or below what was chosen.
    let difference = value - f64::from(nearest);
    let above = difference > 0.0 || (difference == 0.0 && error > 0.0);
    let below = difference < 0.0 || (difference == 0.0 && error < 0.0);
    let negative = value < 0.0 || (value == 0.0 && error < 0.0);
    let (want_down, want_up) = match rounding {
        Rounding::Nearest => (false, false),
        Rounding::Down => (true, false),
        Rounding::Up => (false, true),
        Rounding::Zero => (!negative, negative),
    };
    if want_down && below {
        nearest.next_down()
    } else if want_up && above {
        nearest.next_up()
    } else {
        nearest
    }
}

/// An f32 that rounds to a narrower type as the f64 itself would.
#[inline(always)]
pub(crate) fn to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest) == value {
        return nearest;
    }
    f32::from_bits(narrow(value, 0.0, Rounding::Zero).to_bits() | 1)
}

/// `a + b`, rounded once.
pub(crate) fn add_rounded(a: f32, b: f32, rounding: Rounding) -> f32 {
    let (sum, error) = two_sum(f64::from(a), f64::from(b));
    exact_zero(sum, error, rounding).unwrap_or_else(|| narrow(sum, error, rounding))
}

/// `a * b + c`, rounded once.
pub(crate) fn fma_rounded(a: f32, b: f32, c: Option<f32>, rounding: Rounding) -> f32 {
    // 24 and 24 bits make 48: exact.
    let product = f64::from(a) * f64::from(b);
    let Some(c) = c else {
        return narrow(product, 0.0, rounding);
    };
    let (sum, error) = two_sum(product, f64::from(c));
    exact_zero(sum, error, rounding).unwrap_or_else(|| narrow(sum, error, rounding))
}

/// A sum of opposite numbers is -0 if rounded down, +0 otherwise, which f64 gives.
fn exact_zero(sum: f64, error: f64, rounding: Rounding) -> Option<f32> {
    (sum == 0.0 && error == 0.0 && sum.is_sign_positive() && rounding == Rounding::Down)
        .then_some(-0.0)
}

/// Knuth's two-sum: the rounded sum and its error, which is exact.
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let b_part = sum - a;
    (sum, (a - (sum - b_part)) + (b - b_part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_bracket_the_exact_sum() {
        let (a, b) = (1.0f32, 1e-30f32);
        assert_eq!(add_rounded(a, b, Rounding::Zero), 1.0);
        assert_eq!(add_rounded(a, b, Rounding::Down), 1.0);
        assert_eq!(add_rounded(a, b, Rounding::Up), 1.0f32.next_up());
        assert_eq!(add_rounded(-a, -b, Rounding::Down), (-1.0f32).next_down());
        assert_eq!(add_rounded(-a, -b, Rounding::Zero), -1.0);
    }

    #[test]
    fn directions_bracket_a_fused_product() {
        let third = 1.0f32 / 3.0;
        let down = fma_rounded(third, third, Some(1.0), Rounding::Down);
        let up = fma_rounded(third, third, Some(1.0), Rounding::Up);
        assert_eq!(down.next_up(), up);
        let exact = f64::from(third) * f64::from(third) + 1.0;
        assert!(f64::from(down) < exact && exact < f64::from(up));
    }
}
