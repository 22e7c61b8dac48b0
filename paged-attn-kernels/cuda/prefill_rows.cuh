// Query rows of attend_prefill on their way into shared memory, and results on their way out.
#pragma once

#include "async_copy.cuh"
#include "prefill_shape.cuh"
#include "prefill_tile.cuh"

namespace pageloom {

// Writes down where each packed row of the item is in q and out (row, column) and which keys it sees.
// Rows past the last have the last one's; a barrier lets others read it.
template <class S>
__device__ __forceinline__ void place_rows(const AttendParams &p, const AttendItem &item) {
    if (threadIdx.x >= S::ROWS) return;
    const uint32_t row = min(threadIdx.x, item.num_packed - 1), packed = item.first_packed + row;
    const uint32_t token = packed / p.group, head = item.kv_head * p.group + packed % p.group;
    const KeyRange keys = visible_keys(p, item, row);
    in_shared<uint2>(S::ROW_PLACES)[threadIdx.x] = {item.first_row + token, head * S::DIM};
    in_shared<KeyRange>(S::ROW_KEYS)[threadIdx.x] = {keys.begin, max(keys.begin, keys.end)};
}

// First element of packed row `row` of the item in `rows`.
template <class S>
__device__ __forceinline__ int64_t row_start(const RowsView &rows, uint32_t row) {
    const uint2 place = in_shared<uint2>(S::ROW_PLACES)[row];
    return place.x * rows.stride + place.y;
}

__device__ __forceinline__ float query_as_f32(uint16_t bits, Dtype dtype) {
    return dtype == Dtype::f16 ? __half2float(__ushort_as_half(bits)) : __uint_as_float(uint32_t(bits) << 16);
}

// Two queries as bf16.
__device__ __forceinline__ uint32_t query_pair_as_bf16(uint32_t pair, Dtype dtype) {
    if (dtype != Dtype::f16) return pair;
    return pack_halves<Dtype::bf16>(query_as_f32(pair & 0xffff, dtype), query_as_f32(pair >> 16, dtype));
}

// Rotates the rows of this warp, as the keys of int8 pages were before they were stored, and writes them
// to shared memory. Rows past the last become zeros.
template <class S>
__device__ __forceinline__ void load_rotated_queries(const AttendParams &p, uint32_t num_rows) {
    // Rows whose loads are under way together.
    constexpr uint32_t AT_ONCE = S::DIM <= 128 ? 4 : 2, PER_LANE = (S::DIM + 31) / 32;
    const uint32_t lane = threadIdx.x % 32, first = threadIdx.x / 32 * S::WARP_ROWS;
#pragma unroll 1
    for (uint32_t start = first; start < first + S::WARP_ROWS; start += AT_ONCE) {
        float x[AT_ONCE][PER_LANE];
#pragma unroll
        for (uint32_t r = 0; r < AT_ONCE; ++r) {
            const uint16_t *from = static_cast<const uint16_t *>(p.q.data) + row_start<S>(p.q, start + r);
#pragma unroll
            for (uint32_t j = 0; j < PER_LANE; ++j) {
                const uint32_t i = lane + j * 32;
                x[r][j] = start + r < num_rows && i < S::DIM ? query_as_f32(from[i], p.dtype) : 0.0f;
            }
        }
#pragma unroll
        for (uint32_t r = 0; r < AT_ONCE; ++r) {
            rotate<S::DIM>(x[r], lane);
#pragma unroll
            for (uint32_t j = 0; j < PER_LANE; ++j) {
                const uint32_t i = lane + j * 32;
                const uint32_t at = S::Q + swizzled<S::CHUNKS>(start + r, i / 8) + i % 8 * 2;
                if (i < S::DIM) *in_shared<__nv_bfloat16>(at) = __float2bfloat16_rn(x[r][j]);
            }
        }
    }
}

// Brings the item's queries to shared memory; asynchronously where they stay as they are.
template <class S>
__device__ __forceinline__ void load_queries(const AttendParams &p, uint32_t num_rows) {
    if constexpr (S::KV_TYPE == KvType::int8) {
        load_rotated_queries<S>(p, num_rows);
        return;
    }
    const uint32_t first = threadIdx.x / 8, chunk = threadIdx.x % 8;
#pragma unroll(S::SCALED ? 2 : 4)
    for (uint32_t row = first; row < S::ROWS; row += PREFILL_THREADS / 8) {
        const uint4 *from = reinterpret_cast<const uint4 *>(static_cast<const uint16_t *>(p.q.data) + row_start<S>(p.q, row));
#pragma unroll
        for (uint32_t c = chunk; c < S::CHUNKS; c += 8) {
            const uint32_t at = S::Q + swizzled<S::CHUNKS>(row, c);
            if constexpr (S::SCALED) {
                const uint4 x = row < num_rows ? from[c] : uint4{0, 0, 0, 0};
                *in_shared<uint4>(at) = {query_pair_as_bf16(x.x, p.dtype), query_pair_as_bf16(x.y, p.dtype),
                                         query_pair_as_bf16(x.z, p.dtype), query_pair_as_bf16(x.w, p.dtype)};
            } else {
                copy_async_16(shared_address(in_shared<uint4>(at)), from + c, row < num_rows);
            }
        }
    }
}

// Divides the sums by their weights', whose own sums are those of whole rows afterwards. A row that saw
// no key is zero.
template <class S>
__device__ __forceinline__ void normalise(PrefillSums<S> &sums) {
#pragma unroll
    for (uint32_t m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
            float &sum = sums.sum[m][half];
            sum += __shfl_xor_sync(ALL_LANES, sum, 1);
            sum += __shfl_xor_sync(ALL_LANES, sum, 2);
            // NaN stays NaN.
            const float inverse = sum == 0.0f ? 0.0f : __fdividef(1.0f, sum);
#pragma unroll
            for (uint32_t n = 0; n < S::DIM_TILES * 2; ++n) sums.out[m][n / 2][half * 2 + n % 2] *= inverse;
        }
    }
}

// Writes this warp's rows to p.out, through the place that its queries had in shared memory.
template <class S>
__device__ __forceinline__ void store_rows(const AttendParams &p, uint32_t num_rows, const PrefillSums<S> &sums) {
    const uint32_t lane = threadIdx.x % 32, first = threadIdx.x / 32 * S::WARP_ROWS;
    bool as_f16 = S::TILE_TYPE == Dtype::f16;
    if constexpr (S::SCALED) as_f16 = p.dtype == Dtype::f16;
    __syncwarp();
#pragma unroll
    for (uint32_t i = 0; i < S::ROW_TILES * 2; ++i) {
        const uint32_t row = first + i * 8 + lane / 4;
#pragma unroll
        for (uint32_t n = 0; n < S::DIM_TILES; ++n) {
            const float a = sums.out[i / 2][n][i % 2 * 2], b = sums.out[i / 2][n][i % 2 * 2 + 1];
            *in_shared<uint32_t>(S::Q + swizzled<S::CHUNKS>(row, n) + lane % 4 * 4) =
                as_f16 ? pack_halves<Dtype::f16>(a, b) : pack_halves<Dtype::bf16>(a, b);
        }
    }
    __syncwarp();
#pragma unroll 4
    for (uint32_t row = first + lane / 8; row < first + S::WARP_ROWS; row += 4) {
        if (row >= num_rows) break;
        uint4 *to = reinterpret_cast<uint4 *>(static_cast<uint16_t *>(p.out.data) + row_start<S>(p.out, row));
#pragma unroll
        for (uint32_t c = lane % 8; c < S::CHUNKS; c += 8) to[c] = *in_shared<uint4>(S::Q + swizzled<S::CHUNKS>(row, c));
    }
}

// Writes this warp's rows to p.partial_out from row `partial` on, and the logarithms of their sums.
template <class S>
__device__ __forceinline__ void store_partials(const AttendParams &p, const AttendItem &item, float scale,
                                               const PrefillSums<S> &sums) {
    const uint32_t lane = threadIdx.x % 32, first = threadIdx.x / 32 * S::WARP_ROWS;
#pragma unroll
    for (uint32_t i = 0; i < S::ROW_TILES * 2; ++i) {
        const uint32_t row = first + i * 8 + lane / 4;
        if (row >= item.num_packed) break;
        const int64_t at = int64_t(item.partial) + row;
        float2 *to = reinterpret_cast<float2 *>(p.partial_out + at * S::DIM) + lane % 4;
#pragma unroll
        for (uint32_t n = 0; n < S::DIM_TILES; ++n) {
            to[n * 4] = {sums.out[i / 2][n][i % 2 * 2], sums.out[i / 2][n][i % 2 * 2 + 1]};
        }
        if (lane % 4 == 0) p.partial_lse[at] = sums.reference[i / 2][i % 2] * scale + __log2f(sums.sum[i / 2][i % 2]);
    }
}

}  // namespace pageloom
