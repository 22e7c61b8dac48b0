// How numbers of a cached key or value become 8 bits. `src/element.rs` and `src/cuda/fp8.rs` say the
// same in Rust, to the bit.
//
// A row (one head of one token) lies across a group of adjacent lanes of a warp, a power of two of them,
// 8 numbers each. All lanes of the warp call these together.
#pragma once

#include "numbers.cuh"

namespace pageloom {

constexpr float INT8_MAX_MAGNITUDE = 127.0f;
constexpr float FP8_MAX_MAGNITUDE = 448.0f;

// Multiplies by the orthonormal Walsh-Hadamard matrix in blocks of `len` numbers, a power of two of 8
// or more. Butterflies of large distances first: the order of the sums decides their bits.
__device__ __forceinline__ void hadamard(float (&x)[8], uint32_t len, float norm) {
    for (uint32_t mask = len / 16; mask > 0; mask /= 2) {
        const bool upper = (threadIdx.x & mask) != 0;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float other = __shfl_xor_sync(0xffffffffu, x[i], mask);
            x[i] = upper ? other - x[i] : x[i] + other;
        }
    }
#pragma unroll
    for (int half = 4; half > 0; half /= 2) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if ((i & half) == 0) {
                const float a = x[i], b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] *= norm;
}

// What a row's numbers are stored with, and what they are multiplied by first.
struct Scale {
    float scale;
    float inverse;
};

// The largest magnitude of the row over `top`. A row with an infinity or a NaN gets the scale NaN; one
// whose scale would be below the smallest normal number gets 0.
__device__ __forceinline__ Scale scale_of(const float (&x)[8], uint32_t lanes, float top) {
    // Magnitudes order as their bits do, infinities and NaNs last.
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) bits = max(bits, __float_as_uint(x[i]) & 0x7fffffffu);
    for (uint32_t mask = lanes / 2; mask > 0; mask /= 2) bits = max(bits, __shfl_xor_sync(0xffffffffu, bits, mask));
    if (bits >= 0x7f800000u) return {__int_as_float(0x7fc00000), 0.0f};
    const float largest = __uint_as_float(bits);
    // A few ulp below the largest f32, so that the product with the scale stays finite.
    const float scale = __fdiv_rn(fminf(largest, 0x1.fffff6p127f), top);
    if (scale < 0x1p-126f) return {0.0f, 0.0f};
    return {scale, __fdiv_rn(top, largest)};
}

// To nearest, ties to even; NaN is 0, as its scale is NaN.
__device__ __forceinline__ uint32_t int8_of(float x, float inverse) {
    return uint32_t(__float2int_rn(__fmul_rn(x, inverse))) & 0xff;
}

// The e4m3 number nearest to x, ties to even, magnitudes above 448 as 448; NaN stays NaN. By the bits:
// sm_80 has no instruction for it.
__device__ __forceinline__ uint32_t fp8_of(float x) {
    const uint32_t bits = __float_as_uint(x);
    const uint32_t sign = bits >> 24 & 0x80, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return sign | 0x7f;
    if (magnitude >= 0x43e00000u) return sign | 0x7e;  // 448
    // Below 2^-6 numbers are multiples of 2^-9, which is what this sum is rounded to.
    if (magnitude < 0x3c800000u) return sign | (__float_as_uint(__uint_as_float(magnitude) + 0x1p14f) - 0x46800000u);
    // Keeps 3 bits of the fraction; a carry goes on into the exponent.
    const uint32_t rounded = magnitude + 0x7ffff + (magnitude >> 20 & 1);
    return sign | ((rounded >> 20) - (120 << 3));
}

}  // namespace pageloom
