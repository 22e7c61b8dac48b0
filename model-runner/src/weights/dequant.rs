//! Rows of stored elements to f32.
//!
//! Plain loops over fixed-size blocks, which the compiler vectorises. Each formula is evaluated in
//! f32 in ggml's order of operations, so results equal ggml's reference bit for bit.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::WeightType;

/// Converts one row. `bytes` is `dtype.row_bytes(out.len())` long: the caller's check.
pub(crate) fn dequantise(dtype: WeightType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        WeightType::F32 => f32_row(bytes, out),
        WeightType::F16 => f16_row(bytes, out),
        WeightType::Bf16 => bf16_row(bytes, out),
        WeightType::Q4_0 => blocks::<18, 32>(bytes, out, q4_0),
        WeightType::Q4_1 => blocks::<20, 32>(bytes, out, q4_1),
        WeightType::Q5_0 => blocks::<22, 32>(bytes, out, q5_0),
        WeightType::Q5_1 => blocks::<24, 32>(bytes, out, q5_1),
        WeightType::Q8_0 => blocks::<34, 32>(bytes, out, q8_0),
        WeightType::Q4K => blocks::<144, 256>(bytes, out, q4_k),
        WeightType::Q5K => blocks::<176, 256>(bytes, out, q5_k),
        WeightType::Q6K => blocks::<210, 256>(bytes, out, q6_k),
    }
}

fn f32_row(bytes: &[u8], out: &mut [f32]) {
    for (o, b) in out.iter_mut().zip(bytes.as_chunks().0) {
        *o = f32::from_le_bytes(*b);
    }
}

fn f16_row(bytes: &[u8], out: &mut [f32]) {
    // Converting a slice uses the processor's own instructions where it has them; a file may
    // still place a tensor at an odd address.
    #[cfg(target_endian = "little")]
    if let Ok(halves) = bytemuck::try_cast_slice::<u8, f16>(bytes) {
        halves.convert_to_f32_slice(out);
        return;
    }
    for (o, b) in out.iter_mut().zip(bytes.as_chunks().0) {
        *o = f16::from_le_bytes(*b).to_f32();
    }
}

fn bf16_row(bytes: &[u8], out: &mut [f32]) {
    for (o, b) in out.iter_mut().zip(bytes.as_chunks().0) {
        *o = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
    }
}

#[inline(always)]
fn blocks<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    block: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    for (b, o) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        block(b, o);
    }
}

#[inline(always)]
fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

#[inline(always)]
fn q4_0(b: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(b, 0);
    for j in 0..16 {
        let q = b[2 + j];
        out[j] = (i32::from(q & 0xF) - 8) as f32 * d;
        out[j + 16] = (i32::from(q >> 4) - 8) as f32 * d;
    }
}

#[inline(always)]
fn q4_1(b: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    for j in 0..16 {
        let q = b[4 + j];
        out[j] = f32::from(q & 0xF) * d + m;
        out[j + 16] = f32::from(q >> 4) * d + m;
    }
}

/// The 5-bit values of a block: nibbles with bit `i` of `high` put on top of element `i`.
#[inline(always)]
fn five_bits(high: u32, nibbles: &[u8; 16], mut set: impl FnMut(usize, i32)) {
    for (j, &q) in nibbles.iter().enumerate() {
        set(j, i32::from(q & 0xF) | (((high >> j) & 1) << 4) as i32);
        set(
            j + 16,
            i32::from(q >> 4) | (((high >> (j + 16)) & 1) << 4) as i32,
        );
    }
}

#[inline(always)]
fn q5_0(b: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(b, 0);
    let high = u32::from_le_bytes([b[2], b[3], b[4], b[5]]);
    let nibbles: &[u8; 16] = b[6..].first_chunk().expect("16 bytes follow byte 6 of 22");
    five_bits(high, nibbles, |i, q| out[i] = (q - 16) as f32 * d);
}

#[inline(always)]
fn q5_1(b: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    let high = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
    let nibbles: &[u8; 16] = b[8..].first_chunk().expect("16 bytes follow byte 8 of 24");
    five_bits(high, nibbles, |i, q| out[i] = q as f32 * d + m);
}

#[inline(always)]
fn q8_0(b: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(b, 0);
    for j in 0..32 {
        out[j] = f32::from(b[2 + j] as i8) * d;
    }
}

/// Scale and minimum of sub-block `j` of 8, unpacked from 12 bytes of 6-bit values.
///
/// ```text
/// bytes 0..4   low 6 bits: scales 0..4     high 2 bits: top of scales 4..8
/// bytes 4..8   low 6 bits: mins 0..4       high 2 bits: top of mins 4..8
/// bytes 8..12  low nibble: scales 4..8     high nibble: mins 4..8
/// ```
#[inline(always)]
fn scale_min(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (
            (packed[j + 4] & 0xF) | ((packed[j - 4] >> 6) << 4),
            (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4),
        )
    };
    (f32::from(scale), f32::from(min))
}

fn q4_k(b: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    let (scales, quants) = (&b[4..16], &b[16..144]);
    for pair in 0..4 {
        let (s0, m0) = scale_min(scales, 2 * pair);
        let (s1, m1) = scale_min(scales, 2 * pair + 1);
        let (d0, m0, d1, m1) = (d * s0, dmin * m0, d * s1, dmin * m1);
        for l in 0..32 {
            let q = quants[32 * pair + l];
            out[64 * pair + l] = d0 * f32::from(q & 0xF) - m0;
            out[64 * pair + 32 + l] = d1 * f32::from(q >> 4) - m1;
        }
    }
}

fn q5_k(b: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    let (scales, high, quants) = (&b[4..16], &b[16..48], &b[48..176]);
    for pair in 0..4 {
        let (s0, m0) = scale_min(scales, 2 * pair);
        let (s1, m1) = scale_min(scales, 2 * pair + 1);
        let (d0, m0, d1, m1) = (d * s0, dmin * m0, d * s1, dmin * m1);
        for l in 0..32 {
            let (q, h) = (quants[32 * pair + l], high[l] >> (2 * pair));
            out[64 * pair + l] = d0 * f32::from((q & 0xF) | ((h & 1) << 4)) - m0;
            out[64 * pair + 32 + l] = d1 * f32::from((q >> 4) | ((h & 2) << 3)) - m1;
        }
    }
}

fn q6_k(b: &[u8; 210], out: &mut [f32; 256]) {
    let (low, high, scales) = (&b[..128], &b[128..192], &b[192..208]);
    let d = half_at(b, 208);
    for half in 0..2 {
        let (low, high) = (&low[64 * half..], &high[32 * half..]);
        let scale = |i: usize| d * f32::from(scales[8 * half + i] as i8);
        for l in 0..32 {
            let h = high[l];
            let q = [
                (low[l] & 0xF) | ((h & 3) << 4),
                (low[l + 32] & 0xF) | (((h >> 2) & 3) << 4),
                (low[l] >> 4) | (((h >> 4) & 3) << 4),
                (low[l + 32] >> 4) | ((h >> 6) << 4),
            ];
            for (i, q) in q.into_iter().enumerate() {
                out[128 * half + 32 * i + l] = scale(2 * i + l / 16) * f32::from(q as i8 - 32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(dtype: WeightType, bytes: &[u8]) -> Vec<f32> {
        let mut out = vec![f32::NAN; bytes.len() / dtype.block_bytes() * dtype.block_len()];
        dequantise(dtype, bytes, &mut out);
        out
    }

    fn half(x: f32) -> [u8; 2] {
        f16::from_f32(x).to_le_bytes()
    }

    #[test]
    fn low_nibbles_are_the_first_half_of_a_q4_block() {
        let mut b = [half(0.5), half(-1.0)].concat();
        b.extend((0..16).map(|i| i | ((15 - i) << 4)));
        let out = row(WeightType::Q4_1, &b);
        for i in 0..16 {
            assert_eq!(out[i], i as f32 * 0.5 - 1.0);
            assert_eq!(out[i + 16], (15 - i) as f32 * 0.5 - 1.0);
        }
        let mut b = half(2.0).to_vec();
        b.extend((0..16).map(|i| i | ((15 - i) << 4)));
        let out = row(WeightType::Q4_0, &b);
        assert_eq!(
            (out[0], out[15], out[16], out[31]),
            (-16.0, 14.0, 14.0, -16.0)
        );
    }

    #[test]
    fn fifth_bits_belong_to_the_elements_in_order() {
        for i in 0..32 {
            let mut b = half(1.0).to_vec();
            b.extend((1u32 << i).to_le_bytes());
            b.extend([0u8; 16]);
            let out = row(WeightType::Q5_0, &b);
            for (j, x) in out.into_iter().enumerate() {
                assert_eq!(x, if i == j { 0.0 } else { -16.0 }, "bit {i}, element {j}");
            }
        }
    }

    #[test]
    fn q8_0_is_signed() {
        let mut b = half(0.25).to_vec();
        b.extend((0..32).map(|i| (i as i8 - 16) as u8));
        let out = row(WeightType::Q8_0, &b);
        assert_eq!((out[0], out[16], out[31]), (-4.0, 0.0, 3.75));
    }

    #[test]
    fn unaligned_halves_equal_aligned_ones() {
        let values: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut shifted = vec![0u8];
        shifted.extend(&values);
        let (mut a, mut b) = (vec![0f32; 1 << 16], vec![0f32; 1 << 16]);
        f16_row(&values, &mut a);
        f16_row(&shifted[1..], &mut b);
        // NaN payloads may differ between the two conversions; that it is one may not.
        assert!(
            a.iter()
                .zip(&b)
                .all(|(x, y)| x == y || (x.is_nan() && y.is_nan()))
        );
    }
}
