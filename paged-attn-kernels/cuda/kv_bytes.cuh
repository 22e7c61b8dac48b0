// 8-bit keys and values for tensor cores that multiply bf16, four at a time and exactly.
//
// A token's 16-bit equivalents are never stored: what is read of the pages' bytes is converted in
// registers. This has to be cheap, as a multiprocessor gets 20 such bytes in a cycle: 7 instructions for 4
// bytes, and for fp8 2 more that look for NaN.
#pragma once

#include "types.cuh"

namespace pageloom {

// Two pairs of bf16; the lower half is the first.
struct BytePairs {
    uint32_t even;  // bytes 0 and 2
    uint32_t odd;   // bytes 1 and 3
};

// fp8 numbers come out 2^-120 of what they are. Queries and probabilities are multiplied by the first of
// these beforehand, products by the second: neither comes near the ends of a float's range then.
template <KvType TYPE>
constexpr float BYTES_INPUT_FACTOR = TYPE == KvType::fp8 ? 0x1p64f : 1.0f;
template <KvType TYPE>
constexpr float BYTES_PRODUCT_FACTOR = TYPE == KvType::fp8 ? 0x1p56f : 1.0f;

// (a & b) | c, in one instruction: written out, constants b and c become two.
__device__ __forceinline__ uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// a * b + c for each half.
__device__ __forceinline__ uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// Bytes 0 and 2 of `x` as int8. Its low 7 bits are the last of a bf16 of 128 to 255, whose last bit
// counts 1; 128 or, if its sign bit is set, 256 are taken off that.
__device__ __forceinline__ uint32_t int8_pair(uint32_t x) {
    const uint32_t low = and_or(x, 0x007f007fu, 0x43004300u);
    const uint32_t minus = and_or(x, 0x00800080u, 0xc300c300u);
    return fma_bf16x2(low, 0x3f803f80u, minus);
}

// TYPE: int8 or fp8. The bits of an e4m3 number become the sign, the last 4 of the exponent and the first 3
// of the mantissa; its subnormals, bf16's.
template <KvType TYPE>
__device__ __forceinline__ BytePairs convert_bytes(uint32_t x) {
    if constexpr (TYPE == KvType::int8) {
        return {int8_pair(x), int8_pair(x >> 8)};
    } else {
        const uint32_t even = (x << 4) & 0x07f007f0u, odd = (x >> 4) & 0x07f007f0u;
        return {and_or(x << 8, 0x80008000u, even), and_or(x, 0x80008000u, odd)};
    }
}

// Bits 7 of bytes that are set in the result for some x are those of e4m3's NaN (0x7f, 0xff), and those of
// bytes above one in its word: adding 1 changes no other number's sign.
__device__ __forceinline__ uint32_t nan_bytes(uint32_t so_far, uint32_t x) {
    return so_far | (x ^ (x + 0x01010101u));
}

}  // namespace pageloom
