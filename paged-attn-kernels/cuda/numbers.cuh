// Conversions between f32 and what memory holds.
#pragma once

#include "types.cuh"

namespace pageloom {

__device__ __forceinline__ float bf16_bits_to_f32(uint32_t bits) { return __uint_as_float(bits << 16); }

// Element i of `data`, which holds `dtype`.
__device__ __forceinline__ float load_as_f32(const void *data, int64_t i, Dtype dtype) {
    switch (dtype) {
        case Dtype::bf16: return __bfloat162float(static_cast<const __nv_bfloat16 *>(data)[i]);
        case Dtype::f16: return __half2float(static_cast<const __half *>(data)[i]);
        default: return static_cast<const float *>(data)[i];
    }
}

// Rounds to nearest, ties to even.
__device__ __forceinline__ void store_from_f32(void *data, int64_t i, Dtype dtype, float x) {
    switch (dtype) {
        case Dtype::bf16: static_cast<__nv_bfloat16 *>(data)[i] = __float2bfloat16_rn(x); break;
        case Dtype::f16: static_cast<__half *>(data)[i] = __float2half_rn(x); break;
        default: static_cast<float *>(data)[i] = x;
    }
}

// An e4m3 number (no infinities; 0x7f and 0xff are NaN), by the bits: sm_80 has no instruction for it.
__device__ __forceinline__ float fp8_to_f32(uint8_t bits) {
    // Sign and magnitude as a float whose exponent is 120 too small; subnormals come out right too.
    const float x = __uint_as_float((uint32_t(bits & 0x80) << 24) | (uint32_t(bits & 0x7f) << 20)) * 0x1p120f;
    return (bits & 0x7f) == 0x7f ? __int_as_float(0x7fffffff) : x;
}

}  // namespace pageloom
