// Copying blocks: what copy_blocks and swap_blocks share.
#pragma once

#include "blocks.cuh"

namespace pageloom {

constexpr int COPY_THREADS = 256;

// Copies from one address to the other, all threads of the CTA together, 64 bytes of a thread in flight.
__device__ __forceinline__ void copy_segment(const uint4 *__restrict__ from, uint4 *__restrict__ to, uint32_t len) {
    constexpr int UNROLL = 4;
    for (uint32_t first = threadIdx.x; first < len; first += UNROLL * blockDim.x) {
        uint4 words[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const uint32_t i = first + u * blockDim.x;
            if (i < len) words[u] = __ldcs(from + i);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const uint32_t i = first + u * blockDim.x;
            if (i < len) __stcs(to + i, words[u]);
        }
    }
}

// Every pair in every layer, cut into segments that CTAs take in turn.
__device__ __forceinline__ void copy_pairs(const CopyBlocksParams &p) {
    const uint32_t per_block = (p.block_bytes + p.segment_bytes - 1) / p.segment_bytes;
    const uint64_t num_segments = uint64_t(per_block) * p.num_pairs * p.num_layers;
    for (uint64_t segment = blockIdx.x; segment < num_segments; segment += gridDim.x) {
        const uint32_t start = uint32_t(segment % per_block) * p.segment_bytes;
        const uint64_t block = segment / per_block;
        const BlockPair pair = p.pairs[block % p.num_pairs];
        const int64_t layer = int64_t(block / p.num_pairs);
        const int64_t from = layer * p.from.layer_stride + int64_t(pair.from) * p.block_bytes + start;
        const int64_t to = layer * p.to.layer_stride + int64_t(pair.to) * p.block_bytes + start;
        copy_segment(reinterpret_cast<const uint4 *>(static_cast<const char *>(p.from.data) + from),
                     reinterpret_cast<uint4 *>(static_cast<char *>(p.to.data) + to),
                     min(p.segment_bytes, p.block_bytes - start) / 16);
    }
}

}  // namespace pageloom
