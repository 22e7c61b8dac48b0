// What the attention kernels share: which keys a row sees, where rows lie, scores, rotation.
#pragma once

#include "mma.cuh"
#include "numbers.cuh"

namespace pageloom {

constexpr uint32_t ALL_LANES = 0xffffffffu;

// Keys [begin, end).
struct KeyRange {
    uint32_t begin;
    uint32_t end;
};

// The keys of `item` that its packed row `row` sees; none for a row past its last.
__device__ __forceinline__ KeyRange visible_keys(const AttendParams &p, const AttendItem &item, uint32_t row) {
    if (row >= item.num_packed) return {0, 0};
    const uint32_t end = item.first_position + (item.first_packed + row) / p.group + 1;
    const uint32_t begin = p.window != 0 && end > p.window ? end - p.window : 0;
    return {max(begin, item.kv_begin), min(end, item.kv_end)};
}

// The query rows of a sequence that share a key-value head.
struct PackedRows {
    uint32_t first_row;
    uint32_t kv_head;
    uint32_t group;
};

// Element of q or out at which packed row `packed` starts.
__device__ __forceinline__ int64_t packed_offset(const PackedRows &rows, int64_t stride, uint32_t head_dim,
                                                 uint32_t packed) {
    const uint32_t token = packed / rows.group;
    const uint32_t head = rows.kv_head * rows.group + (packed - token * rows.group);
    return int64_t(rows.first_row + token) * stride + int64_t(head) * head_dim;
}

// Element of a layer's keys or values at which token `token` of a sequence starts, if `block` holds it.
__device__ __forceinline__ int64_t kv_offset(const KvView &kv, uint32_t block, uint32_t kv_head, uint32_t token) {
    const uint32_t in_block = token & ((1u << kv.block_shift) - 1);
    return int64_t(block) * kv.block_stride + int64_t(kv_head) * kv.head_stride + int64_t(in_block) * kv.token_stride;
}

// Float of a layer's scales that belongs to that token.
__device__ __forceinline__ int64_t scale_offset(const KvView &kv, uint32_t block, uint32_t kv_head, uint32_t token) {
    const uint32_t in_block = token & ((1u << kv.block_shift) - 1);
    return int64_t(block) * kv.scale_block_stride + int64_t(kv_head) * kv.scale_head_stride + in_block;
}

// cap * tanh(score / cap), for scores times log2(e). Off by 2^-22 of the cap at most.
__device__ __forceinline__ float capped_score(float score_log2, float cap) {
    const float limit = cap * 1.4426950408889634f;
    return limit - __fdividef(2.0f * limit, 1.0f + fast_exp2(score_log2 * (2.0f / cap)));
}

// What exponents are taken against where the largest score so far is `largest`: -inf minus -inf is no
// number, and 2^(-inf - 0) is the 0 that is wanted.
__device__ __forceinline__ float exponent_base(float largest) { return largest == -INFINITY ? 0.0f : largest; }

// The rotation of keys of int8 caches, of rows whose element d is x[d / 32] of lane d % 32; see
// src/element.rs: blocks of the largest power of two that divides the length, the same sums in the same order.
template <uint32_t HEAD_DIM_>
__device__ __forceinline__ void rotate(float (&x)[(HEAD_DIM_ + 31) / 32], uint32_t lane) {
    constexpr uint32_t LEN = HEAD_DIM_ & (~HEAD_DIM_ + 1);
    constexpr uint32_t PER_LANE = (HEAD_DIM_ + 31) / 32;
#pragma unroll
    for (uint32_t half = LEN / 2; half >= 32; half /= 2) {
#pragma unroll
        for (uint32_t i = 0; i < PER_LANE; ++i) {
            const uint32_t j = i ^ (half / 32);
            if (i < j) {
                const float low = x[i], high = x[j];
                x[i] = low + high;
                x[j] = low - high;
            }
        }
    }
#pragma unroll
    for (uint32_t half = LEN / 2 < 16 ? LEN / 2 : 16; half > 0; half /= 2) {
#pragma unroll
        for (uint32_t i = 0; i < PER_LANE; ++i) {
            const float other = __shfl_xor_sync(ALL_LANES, x[i], half);
            x[i] = (lane & half) == 0 ? x[i] + other : other - x[i];
        }
    }
    const float norm = 1.0f / sqrtf(float(LEN));
#pragma unroll
    for (uint32_t i = 0; i < PER_LANE; ++i) x[i] *= norm;
}

}  // namespace pageloom
