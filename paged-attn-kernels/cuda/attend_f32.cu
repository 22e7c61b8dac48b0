// Attention in f32 throughout, over pages of any format: no tensor cores, for f32 activations.
//
//   q, out        [num_tokens, num_heads, head_dim], rows strided; f32
//   items         [num_items], each of at most 16 packed rows
//   partial_out   [partials, head_dim]    partial_lse [partials]
//
// variants: HEAD_DIM=64,80,96,128,256
//
// A CTA takes every gridDim.x-th item. It brings 32 tokens at a time into shared memory, as f32. Each of
// its four warps has 4 rows: a lane has one token of the scores, then every 32nd column of the sums.
#include "attention.cuh"

namespace pageloom {

constexpr uint32_t NUM_WARPS = 4;
constexpr uint32_t NUM_THREADS = 32 * NUM_WARPS;
constexpr uint32_t MAX_ROWS = 16;
constexpr uint32_t WARP_ROWS = MAX_ROWS / NUM_WARPS;
constexpr uint32_t TILE_TOKENS = 32;
constexpr uint32_t PER_LANE = (HEAD_DIM + 31) / 32;
// An odd number of 16 bytes, so that the same columns of 8 tokens are in different banks.
constexpr uint32_t STRIDE = HEAD_DIM + 4;

struct Shared {
    float4 q[MAX_ROWS][HEAD_DIM / 4];
    float4 keys[TILE_TOKENS][STRIDE / 4];
    float4 values[TILE_TOKENS][STRIDE / 4];
    float4 exponentials[MAX_ROWS][TILE_TOKENS / 4];
};

// A warp's results: rows 4 * warp to 4 * warp + 3, columns lane + 32 * j.
struct Results {
    float o[WARP_ROWS][PER_LANE];
    float largest[WARP_ROWS];
    float sum[WARP_ROWS];
};

// Elements 4i to 4i + 3 after element `start`, times `scale`.
__device__ __forceinline__ float4 load_four(const void *data, int64_t start, uint32_t i, KvType type, float scale) {
    const char *at = static_cast<const char *>(data);
    float4 x;
    switch (type) {
        case KvType::f32: return *reinterpret_cast<const float4 *>(at + (start + 4 * i) * 4);
        case KvType::bf16: {
            const uint2 y = *reinterpret_cast<const uint2 *>(at + (start + 4 * i) * 2);
            return make_float4(__uint_as_float(y.x << 16), __uint_as_float(y.x & 0xffff0000u),
                               __uint_as_float(y.y << 16), __uint_as_float(y.y & 0xffff0000u));
        }
        case KvType::f16: {
            const uint2 y = *reinterpret_cast<const uint2 *>(at + (start + 4 * i) * 2);
            const float2 low = __half22float2(reinterpret_cast<const __half2 &>(y.x));
            const float2 high = __half22float2(reinterpret_cast<const __half2 &>(y.y));
            return make_float4(low.x, low.y, high.x, high.y);
        }
        case KvType::int8: {
            const char4 y = *reinterpret_cast<const char4 *>(at + start + 4 * i);
            x = make_float4(y.x, y.y, y.z, y.w);
            break;
        }
        default: {
            const uchar4 y = *reinterpret_cast<const uchar4 *>(at + start + 4 * i);
            x = make_float4(fp8_to_f32(y.x), fp8_to_f32(y.y), fp8_to_f32(y.z), fp8_to_f32(y.w));
        }
    }
    return make_float4(x.x * scale, x.y * scale, x.z * scale, x.w * scale);
}

// Brings the keys and values of the tokens from `token` on to shared memory; zeros outside of the item's.
__device__ __forceinline__ void load_tile(const AttendParams &p, const AttendItem &item, uint32_t token,
                                          Shared &shared) {
    constexpr uint32_t FOURS = HEAD_DIM / 4;
    const uint32_t *table = p.block_tables + item.table_offset;
    const bool scaled = p.kv_type == KvType::int8 || p.kv_type == KvType::fp8;
#pragma unroll 2
    for (uint32_t i = threadIdx.x; i < TILE_TOKENS * FOURS; i += NUM_THREADS) {
        const uint32_t row = i / FOURS, four = i % FOURS, key = token + row;
        float4 k = {}, v = {};
        if (key >= item.kv_begin && key < item.kv_end) {
            const uint32_t block = table[key >> p.kv.block_shift];
            const int64_t start = kv_offset(p.kv, block, item.kv_head, key);
            const int64_t scale = scale_offset(p.kv, block, item.kv_head, key);
            k = load_four(p.kv.k, start, four, p.kv_type, scaled ? p.kv.k_scales[scale] : 1.0f);
            v = load_four(p.kv.v, start, four, p.kv_type, scaled ? p.kv.v_scales[scale] : 1.0f);
        }
        shared.keys[row][four] = k;
        shared.values[row][four] = v;
    }
}

// Brings this warp's query rows to shared memory, turned as the keys are.
__device__ __forceinline__ void load_query(const AttendParams &p, const AttendItem &item, Shared &shared) {
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const PackedRows rows{item.first_row, item.kv_head, p.group};
#pragma unroll
    for (uint32_t i = 0; i < WARP_ROWS; ++i) {
        const uint32_t row = warp * WARP_ROWS + i;
        const bool present = row < item.num_packed;
        const int64_t at = present ? packed_offset(rows, p.q.stride, HEAD_DIM, item.first_packed + row) : 0;
        float x[PER_LANE];
#pragma unroll
        for (uint32_t j = 0; j < PER_LANE; ++j) {
            const uint32_t d = lane + 32 * j;
            x[j] = present && d < HEAD_DIM ? static_cast<const float *>(p.q.data)[at + d] : 0.0f;
        }
        if (p.kv_type == KvType::int8) rotate<HEAD_DIM>(x, lane);
#pragma unroll
        for (uint32_t j = 0; j < PER_LANE; ++j) {
            const uint32_t d = lane + 32 * j;
            if (d < HEAD_DIM) reinterpret_cast<float *>(shared.q[row])[d] = x[j];
        }
    }
    __syncwarp();
}

// Scores of this warp's rows and this lane's token, times log2(e) and capped.
__device__ __forceinline__ void multiply_keys(const AttendParams &p, const Shared &shared, float (&s)[WARP_ROWS]) {
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (uint32_t i = 0; i < WARP_ROWS; ++i) s[i] = 0.0f;
#pragma unroll 4
    for (uint32_t j = 0; j < HEAD_DIM / 4; ++j) {
        const float4 k = shared.keys[lane][j];
#pragma unroll
        for (uint32_t i = 0; i < WARP_ROWS; ++i) {
            const float4 q = shared.q[warp * WARP_ROWS + i][j];
            s[i] += (q.x * k.x + q.y * k.y) + (q.z * k.z + q.w * k.w);
        }
    }
    const float limit = p.soft_cap * 1.4426950408889634f;
#pragma unroll
    for (uint32_t i = 0; i < WARP_ROWS; ++i) {
        s[i] *= p.scale_log2;
        if (p.soft_cap != 0.0f) s[i] = limit * tanhf(s[i] / limit);
    }
}

// Adds the tokens in shared memory, whose scores are `s`, to the results.
__device__ __forceinline__ void add_tile(Shared &shared, float (&s)[WARP_ROWS], Results &r) {
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (uint32_t i = 0; i < WARP_ROWS; ++i) {
        float largest = s[i];
#pragma unroll
        for (uint32_t j = 16; j > 0; j /= 2) largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, j));
        largest = fmaxf(largest, r.largest[i]);
        const float base = exponent_base(largest);
        const float factor = exp2f(r.largest[i] - base), x = exp2f(s[i] - base);
        r.largest[i] = largest;
        r.sum[i] = r.sum[i] * factor + x;
#pragma unroll
        for (uint32_t j = 0; j < PER_LANE; ++j) r.o[i][j] *= factor;
        reinterpret_cast<float *>(shared.exponentials[warp * WARP_ROWS + i])[lane] = x;
    }
    __syncwarp();
#pragma unroll 2
    for (uint32_t t = 0; t < TILE_TOKENS; t += 4) {
        float4 x[WARP_ROWS];
#pragma unroll
        for (uint32_t i = 0; i < WARP_ROWS; ++i) x[i] = shared.exponentials[warp * WARP_ROWS + i][t / 4];
#pragma unroll
        for (uint32_t j = 0; j < PER_LANE; ++j) {
            const uint32_t d = lane + 32 * j;
            if (d >= HEAD_DIM) continue;
            float v[4];
#pragma unroll
            for (uint32_t k = 0; k < 4; ++k) v[k] = reinterpret_cast<const float *>(shared.values[t + k])[d];
#pragma unroll
            for (uint32_t i = 0; i < WARP_ROWS; ++i) {
                r.o[i][j] += (x[i].x * v[0] + x[i].y * v[1]) + (x[i].z * v[2] + x[i].w * v[3]);
            }
        }
    }
}

__device__ __forceinline__ void store(const AttendParams &p, const AttendItem &item, Results &r) {
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const PackedRows rows{item.first_row, item.kv_head, p.group};
#pragma unroll
    for (uint32_t i = 0; i < WARP_ROWS; ++i) {
        const uint32_t row = warp * WARP_ROWS + i;
        float sum = r.sum[i];
#pragma unroll
        for (uint32_t j = 16; j > 0; j /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, j);
        if (row >= item.num_packed) continue;
        // A row that saw no key has the result 0.
        const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
        float *to = item.partial == NO_PARTIAL
                        ? static_cast<float *>(p.out.data) +
                              packed_offset(rows, p.out.stride, HEAD_DIM, item.first_packed + row)
                        : p.partial_out + int64_t(item.partial + row) * HEAD_DIM;
#pragma unroll
        for (uint32_t j = 0; j < PER_LANE; ++j) {
            if (lane + 32 * j < HEAD_DIM) to[lane + 32 * j] = r.o[i][j] * inverse;
        }
        if (item.partial != NO_PARTIAL && lane == 0) {
            p.partial_lse[item.partial + row] = r.largest[i] + log2f(sum);
        }
    }
}

extern "C" __global__ void __launch_bounds__(NUM_THREADS, 4) attend_f32(const __grid_constant__ AttendParams p) {
    extern __shared__ __align__(128) char dynamic_shared[];
    asm("// dynamic shared: %0" ::"n"(sizeof(Shared)));
    Shared &shared = *reinterpret_cast<Shared *>(dynamic_shared);
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t num_items = *p.num_items;
    for (uint32_t i = blockIdx.x; i < num_items; i += gridDim.x) {
        const AttendItem item = p.items[i];
        load_query(p, item, shared);
        Results r = {};
        KeyRange visible[WARP_ROWS];
#pragma unroll
        for (uint32_t j = 0; j < WARP_ROWS; ++j) {
            r.largest[j] = -INFINITY;
            visible[j] = visible_keys(p, item, warp * WARP_ROWS + j);
        }
        for (uint32_t token = item.kv_begin / TILE_TOKENS * TILE_TOKENS; token < item.kv_end; token += TILE_TOKENS) {
            __syncthreads();  // the tile before has been read
            load_tile(p, item, token, shared);
            __syncthreads();
            if (warp * WARP_ROWS >= item.num_packed) continue;
            float s[WARP_ROWS];
            multiply_keys(p, shared, s);
#pragma unroll
            for (uint32_t j = 0; j < WARP_ROWS; ++j) {
                const uint32_t key = token + lane;
                if (key < visible[j].begin || key >= visible[j].end) s[j] = -INFINITY;
            }
            add_tile(shared, s, r);
        }
        store(p, item, r);
    }
}

}  // namespace pageloom
