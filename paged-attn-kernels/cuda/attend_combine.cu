// Sums what attention found over parts of the keys.
//
//   partial_out   [partials, head_dim]    partial_lse [partials], base-2 logarithms
//   out           [num_tokens, num_heads, head_dim], rows strided
//
//   out[row] = sum over splits of 2^(lse - max) * partial / sum over splits of 2^(lse - max)
//
// CTAs (x, y) of 4 warps take every gridDim.x-th item, a warp every (4 * gridDim.y)-th of its rows. A row
// no split of which saw a key is 0.
#include "attention.cuh"

namespace pageloom {

constexpr uint32_t NUM_WARPS = 4;
constexpr uint32_t MAX_HEAD_DIM = 256;
constexpr uint32_t PER_LANE = MAX_HEAD_DIM / 32;

__device__ __forceinline__ void combine_row(const CombineParams &p, const CombineItem &item, uint32_t row) {
    const uint32_t lane = threadIdx.x % 32;
    float largest = -INFINITY;
    for (uint32_t i = lane; i < item.num_splits; i += 32) {
        largest = fmaxf(largest, p.partial_lse[item.partial + i * item.num_packed + row]);
    }
#pragma unroll
    for (uint32_t i = 16; i > 0; i /= 2) largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, i));
    const float base = exponent_base(largest);

    float sums[PER_LANE] = {};
    float total = 0.0f;
#pragma unroll 4
    for (uint32_t i = 0; i < item.num_splits; ++i) {
        const uint32_t partial = item.partial + i * item.num_packed + row;
        const float weight = fast_exp2(p.partial_lse[partial] - base);
        const float *from = p.partial_out + int64_t(partial) * p.head_dim;
        total += weight;
#pragma unroll
        for (uint32_t j = 0; j < PER_LANE; ++j) {
            const uint32_t d = lane + 32 * j;
            if (d < p.head_dim) sums[j] += weight * from[d];
        }
    }
    const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
    const PackedRows rows{item.first_row, item.kv_head, p.group};
    const int64_t at = packed_offset(rows, p.out.stride, p.head_dim, item.first_packed + row);
#pragma unroll
    for (uint32_t j = 0; j < PER_LANE; ++j) {
        const uint32_t d = lane + 32 * j;
        if (d < p.head_dim) store_from_f32(p.out.data, at + d, p.dtype, sums[j] * inverse);
    }
}

extern "C" __global__ void __launch_bounds__(32 * NUM_WARPS, 8)
    attend_combine(const __grid_constant__ CombineParams p) {
    const uint32_t num_items = *p.num_items;
    const uint32_t warp = blockIdx.y * NUM_WARPS + threadIdx.x / 32;
    for (uint32_t i = blockIdx.x; i < num_items; i += gridDim.x) {
        const CombineItem item = p.items[i];
        for (uint32_t row = warp; row < item.num_packed; row += gridDim.y * NUM_WARPS) combine_row(p, item, row);
    }
}

}  // namespace pageloom
