// Bytes of compressed pages as bf16 in their order, exactly, without their scales.
#pragma once

#include "kv_bytes.cuh"

namespace pageloom {

// Bytes 0 and 1 of `x` into .x, 2 and 3 into .y; the lower one into the lower half.
//
// A NaN of fp8 (0x7f, 0xff) reads as 480: pages hold it only where the row's scale is NaN, which makes
// NaN of it.
template <KvType TYPE>
__device__ __forceinline__ uint2 widen(uint32_t x) {
    if constexpr (TYPE == KvType::int8) {
        return {int8_pair(__byte_perm(x, 0, 0x4140)), int8_pair(__byte_perm(x, 0, 0x4342))};
    } else {
        const auto one = [](uint32_t pair) {  // in the upper bytes of the halves
            // Exponent and mantissa in their places are 2^120 too small, subnormals included.
            return fma_bf16x2((pair >> 4 & 0x07f007f0) | (pair & 0x80008000), 0x7b807b80, 0x80008000);
        };
        return {one(__byte_perm(x, 0, 0x1404)), one(__byte_perm(x, 0, 0x3424))};
    }
}

}  // namespace pageloom
