// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror, Shaw, "Parallel random
// numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include "types.cuh"

namespace pageloom {

// 53 random bits, as a fraction of 2^64: of words 1 (high) and 0 (low) of the block with the
// counter [position, 0, 0, 0] and the key `seed`, low word first.
__device__ __forceinline__ uint64_t uniform_bits(uint64_t seed, uint32_t position) {
    uint32_t c0 = position, c1 = 0, c2 = 0, c3 = 0;
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint64_t left = uint64_t(0xD2511F53u) * c0;
        const uint64_t right = uint64_t(0xCD9E8D57u) * c2;
        c0 = uint32_t(right >> 32) ^ c1 ^ k0;
        c1 = uint32_t(right);
        c2 = uint32_t(left >> 32) ^ c3 ^ k1;
        c3 = uint32_t(left);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (uint64_t(c1) << 32 | c0) & ~uint64_t(0x7ff);
}

}  // namespace pageloom
