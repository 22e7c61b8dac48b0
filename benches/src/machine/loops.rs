//! Loops that do nothing but one kind of work.

/// Rounds of a loop between two looks at the clock.
const ROUNDS: usize = 20_000;
/// Independent sums: enough to hide four cycles of latency on two ports.
#[cfg(target_arch = "x86_64")]
const CHAINS: usize = 12;

/// Sum of all words: reads each once, in order.
pub(super) fn sum(words: &[u64]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        // SAFETY: the machine has what the function is compiled for.
        return unsafe { sum_avx512(words) };
    }
    sum_lanes(words)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn sum_avx512(words: &[u64]) -> u64 {
    sum_lanes(words)
}

#[inline(always)]
fn sum_lanes(words: &[u64]) -> u64 {
    let mut sums = [0u64; 32];
    for chunk in words.chunks_exact(sums.len()) {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.into_iter().fold(0, u64::wrapping_add)
}

/// Multiplies and adds f32 numbers; returns how many operations that were.
pub(super) fn fma() -> f64 {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has what the function is compiled for.
            return unsafe { fma_avx512() };
        }
        if std::arch::is_x86_feature_detected!("fma") {
            // SAFETY: as above.
            return unsafe { fma_avx() };
        }
    }
    fma_plain()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn fma_avx512() -> f64 {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_reduce_add_ps, _mm512_set1_ps};
    let (a, b) = std::hint::black_box((_mm512_set1_ps(0.5), _mm512_set1_ps(0.25)));
    let mut sums = [_mm512_set1_ps(1.0); CHAINS];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, a, b);
        }
    }
    std::hint::black_box(sums.map(|sum| _mm512_reduce_add_ps(sum)));
    (ROUNDS * CHAINS * 16 * 2) as f64
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx,fma")]
fn fma_avx() -> f64 {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps};
    let (a, b) = std::hint::black_box((_mm256_set1_ps(0.5), _mm256_set1_ps(0.25)));
    let mut sums = [_mm256_set1_ps(1.0); CHAINS];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, a, b);
        }
    }
    std::hint::black_box(sums);
    (ROUNDS * CHAINS * 8 * 2) as f64
}

/// What the compiler makes of it.
fn fma_plain() -> f64 {
    let (a, b) = std::hint::black_box((0.5f32, 0.25f32));
    let mut sums = [1.0f32; 32];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = *sum * a + b;
        }
    }
    std::hint::black_box(sums);
    (ROUNDS * 32 * 2) as f64
}

/// Whether `vpdpbusd` is there in 512 bits.
pub(super) fn has_vnni() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512vnni")
        && std::arch::is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Multiplies bytes and adds them up; returns how many operations that were, none without VNNI.
pub(super) fn vnni() -> f64 {
    #[cfg(target_arch = "x86_64")]
    if has_vnni() {
        // SAFETY: the machine has what the function is compiled for.
        return unsafe { vnni_avx512() };
    }
    0.0
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn vnni_avx512() -> f64 {
    use std::arch::x86_64::{_mm512_dpbusd_epi32, _mm512_reduce_add_epi32, _mm512_set1_epi8};
    let (a, b) = std::hint::black_box((_mm512_set1_epi8(3), _mm512_set1_epi8(-2)));
    let mut sums = [a; CHAINS];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, b);
        }
    }
    std::hint::black_box(sums.map(|sum| _mm512_reduce_add_epi32(sum)));
    (ROUNDS * CHAINS * 64 * 2) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_words_of_whole_chunks_are_summed() {
        let words: Vec<u64> = (0..64).collect();
        assert_eq!(sum(&words), 64 * 63 / 2);
    }
}
