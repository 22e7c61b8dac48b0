// Attention of few query rows to many cached keys.
//
//   q, out        [num_tokens, num_heads, head_dim], rows strided; bf16 or f16
//   items         [num_items], each of at most 16 packed rows
//   partial_out   [partials, head_dim]    partial_lse [partials]
//
// variants: HEAD_DIM=64,80,96,128,256 KV=bf16,f16,int8,fp8
//
// A CTA takes every gridDim.x-th item. Its four warps share the keys: of each 64 tokens at a multiple of
// 64, a warp has 16. It copies their keys and values into a ring of its own, so that warps wait for each
// other only where an item begins and where their results are summed; while they sum, the next item's
// keys are on their way.
//
//   warp:  keys(t) -> scores -> mask, 2^x -> values(t) -> sums     m, l, O in registers
//            ^ refilled by keys(t + STAGES)     ^ refilled by values(t + STAGES)
#include "async_copy.cuh"
#include "attention.cuh"
#include "decode_ring.cuh"

namespace pageloom {

constexpr uint32_t NUM_THREADS = 32 * NUM_WARPS;
constexpr uint32_t K_STEPS = HEAD_DIM / 16;
constexpr uint32_t N_TILES = ROW_CHUNKS * 16 / ELEMENT_BYTES / 8;  // of 8 columns of O
constexpr uint32_t Q_CHUNKS = HEAD_DIM / 8;
constexpr bool Q_IN_REGISTERS = HEAD_DIM <= 128;
// The merge takes 32 columns of O at a time; rows are apart so that few of them share banks.
constexpr uint32_t SLICE = 32;
constexpr uint32_t SLICE_STRIDE = SLICE + 4;

struct Shared {
    alignas(128) char ring[NUM_WARPS][STAGES][STAGE_BYTES];
    alignas(128) char q[MAX_ROWS * HEAD_DIM * 2];
    float slices[NUM_WARPS][MAX_ROWS][SLICE_STRIDE];
    float largest[NUM_WARPS][MAX_ROWS];
    float sums[NUM_WARPS][MAX_ROWS];
};

// Of a lane 4g + c, results for rows g and g + 8.
struct Results {
    float o[N_TILES][4];
    float largest[2];  // of the scores, times log2(e)
    float sum[2];      // of 2^(score - largest), of this lane's columns
};

// Column `e` (0 or 1) of this lane in n-tile `tile` of the scores is this one of the warp's 16 tokens.
// 8-bit values are read by four rows that follow each other, hence the other order.
__device__ __forceinline__ uint32_t token_of(uint32_t c, uint32_t tile, uint32_t e) {
    return 8 * tile + (BYTES ? c + 4 * e : 2 * c + e);
}

// Where element `d` of a query row is in the order in which keys are contracted: 8-bit keys are read
// by words, whose even bytes are pairs of one register and odd ones of the next.
__device__ __forceinline__ uint32_t contraction_order(uint32_t d) {
    if (!BYTES) return d;
    return (d & ~15u) + ((d & 12) >> 1) + ((d & 2) >> 1) + 8 * (d & 1);
}

// Rounds the item's query rows to what is multiplied and puts them into shared memory; absent ones are 0.
__device__ __forceinline__ void stage_query(const AttendParams &p, const AttendItem &item, Shared &shared) {
    constexpr uint32_t PER_LANE = (HEAD_DIM + 31) / 32;
    constexpr uint32_t PER_WARP = MAX_ROWS / NUM_WARPS;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint16_t *q = static_cast<const uint16_t *>(p.q.data);
    const PackedRows rows{item.first_row, item.kv_head, p.group};
    uint16_t x[PER_WARP][PER_LANE];
#pragma unroll
    for (uint32_t i = 0; i < PER_WARP; ++i) {
        const uint32_t row = warp * PER_WARP + i;
        const bool present = row < item.num_packed;
        const int64_t at = present ? packed_offset(rows, p.q.stride, HEAD_DIM, item.first_packed + row) : 0;
#pragma unroll
        for (uint32_t j = 0; j < PER_LANE; ++j) {
            x[i][j] = present && lane + 32 * j < HEAD_DIM ? q[at + lane + 32 * j] : 0;
        }
    }
#pragma unroll
    for (uint32_t i = 0; i < PER_WARP; ++i) {
        const uint32_t row = warp * PER_WARP + i;
        if constexpr (BYTES) {
            float y[PER_LANE];
#pragma unroll
            for (uint32_t j = 0; j < PER_LANE; ++j) {
                y[j] = p.dtype == Dtype::f16 ? __half2float(__ushort_as_half(x[i][j])) : bf16_bits_to_f32(x[i][j]);
            }
            if constexpr (TYPE == KvType::int8) rotate<HEAD_DIM>(y, lane);
#pragma unroll
            for (uint32_t j = 0; j < PER_LANE; ++j) {
                x[i][j] = __bfloat16_as_ushort(__float2bfloat16_rn(y[j] * BYTES_INPUT_FACTOR<TYPE>));
            }
        }
#pragma unroll
        for (uint32_t j = 0; j < PER_LANE; ++j) {
            if (lane + 32 * j >= HEAD_DIM) continue;
            const uint32_t at = contraction_order(lane + 32 * j);
            *reinterpret_cast<uint16_t *>(shared.q + swizzled<Q_CHUNKS>(row, at / 8) + at % 8 * 2) = x[i][j];
        }
    }
}

// Makes the scores of the keys in which lanes found a NaN one: `nans[t]` of a lane 4g + c is what it knows of
// the key of column g.
__device__ __forceinline__ void spread_nans(float (&s)[2][4], const uint32_t (&nans)[2]) {
    if (!__any_sync(ALL_LANES, ((nans[0] | nans[1]) & 0x80808080u) != 0)) return;
    const uint32_t c = threadIdx.x % 4;
#pragma unroll
    for (uint32_t tile = 0; tile < 2; ++tile) {
        const uint32_t lanes = __ballot_sync(ALL_LANES, (nans[tile] & 0x80808080u) != 0);
#pragma unroll
        for (uint32_t e = 0; e < 2; ++e) {
            if ((lanes >> (4 * (2 * c + e)) & 15) == 0) continue;
            s[tile][e] = s[tile][2 + e] = __int_as_float(0x7fffffff);
        }
    }
}

// Scores of 16 rows by 16 tokens: tile t, column e of row r at s[t][2 * r + e]; not scaled.
__device__ __forceinline__ void multiply_keys(float (&s)[2][4], const uint32_t (&q)[Q_IN_REGISTERS ? K_STEPS : 1][4],
                                              uint32_t q_address, uint32_t keys) {
    // Two sums each, so that one product need not wait for the one before.
    float sums[2][2][4] = {};
    uint32_t nans[2] = {};
#pragma unroll
    for (uint32_t k = 0; k < K_STEPS; ++k) {
        uint32_t a[4];
        if constexpr (Q_IN_REGISTERS) {
#pragma unroll
            for (uint32_t i = 0; i < 4; ++i) a[i] = q[k][i];
        } else {
            load_matrices(a, step_chunks<Q_CHUNKS>(q_address, 2 * k));
        }
        if constexpr (BYTES) {
            const uint32_t at = step_chunks<ROW_CHUNKS>(keys, k);
#pragma unroll
            for (uint32_t tile = 0; tile < 2; ++tile) {
                const uint32_t x = load_shared(at + tile * 8 * ROW_BYTES);
                if constexpr (TYPE == KvType::fp8) nans[tile] = nan_bytes(nans[tile], x);
                const BytePairs b = convert_bytes<TYPE>(x);
                mma_16x8x16<MMA>(sums[k % 2][tile], a, b.even, b.odd);
            }
        } else {
            uint32_t b[4];
            load_matrices(b, step_chunks<ROW_CHUNKS>(keys, 2 * k));
            mma_16x8x16<MMA>(sums[k % 2][0], a, b[0], b[1]);
            mma_16x8x16<MMA>(sums[k % 2][1], a, b[2], b[3]);
        }
    }
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) s[i / 4][i % 4] = sums[0][i / 4][i % 4] + sums[1][i / 4][i % 4];
    if constexpr (TYPE == KvType::fp8) spread_nans(s, nans);
}

// Adds the products of 16 rows of P and the warp's 16 values to O. Says whether there is a NaN among fp8 ones,
// which are multiplied as if it were a number.
__device__ __forceinline__ bool multiply_values(float (&o)[N_TILES][4], const uint32_t (&a)[4], uint32_t values) {
    uint32_t nans = 0;
    if constexpr (BYTES) {
#pragma unroll
        for (uint32_t k = 0; k < N_TILES / 4; ++k) {
            const uint32_t at = step_value_chunks(values, 2 * k);
            BytePairs b[2][2];  // [tokens 0 to 7, 8 to 15][bytes 0 and 1, 2 and 3]
#pragma unroll
            for (uint32_t half = 0; half < 2; ++half) {
                const uint32_t x = load_shared(at + half * 8 * ROW_BYTES);
                const uint32_t y = load_shared(at + half * 8 * ROW_BYTES + 4 * ROW_BYTES);
                // What pads rows may be anything.
                const bool is_row = 32 * k + 32 <= HEAD_DIM || 32 * k + threadIdx.x % 32 / 4 * 4 < HEAD_DIM;
                if (TYPE == KvType::fp8 && is_row) nans = nan_bytes(nan_bytes(nans, x), y);
                b[half][0] = convert_bytes<TYPE>(__byte_perm(x, y, 0x5410));
                b[half][1] = convert_bytes<TYPE>(__byte_perm(x, y, 0x7632));
            }
            mma_16x8x16<MMA>(o[4 * k + 0], a, b[0][0].even, b[1][0].even);
            mma_16x8x16<MMA>(o[4 * k + 1], a, b[0][0].odd, b[1][0].odd);
            mma_16x8x16<MMA>(o[4 * k + 2], a, b[0][1].even, b[1][1].even);
            mma_16x8x16<MMA>(o[4 * k + 3], a, b[0][1].odd, b[1][1].odd);
        }
    } else {
#pragma unroll
        for (uint32_t k = 0; k < N_TILES / 2; ++k) {
            uint32_t b[4];
            load_matrices_transposed(b, step_chunks<ROW_CHUNKS>(values, 2 * k));
            mma_16x8x16<MMA>(o[2 * k], a, b[0], b[1]);
            mma_16x8x16<MMA>(o[2 * k + 1], a, b[2], b[3]);
        }
    }
    return TYPE == KvType::fp8 && __any_sync(ALL_LANES, (nans & 0x80808080u) != 0);
}

// Caps the scores of the tokens from `token` on, which are times log2(e), and masks them.
__device__ __forceinline__ void finish_scores(float (&s)[2][4], const AttendParams &p, const KeyRange (&visible)[2],
                                              uint32_t token) {
    const uint32_t c = threadIdx.x % 4;
    if (p.soft_cap != 0.0f) {
#pragma unroll
        for (uint32_t i = 0; i < 8; ++i) s[i / 4][i % 4] = capped_score(s[i / 4][i % 4], p.soft_cap);
    }
    const uint32_t begin = max(visible[0].begin, visible[1].begin), end = min(visible[0].end, visible[1].end);
    if (token >= begin && token + WARP_TOKENS <= end) return;
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) {
        const uint32_t key = token + token_of(c, i / 4, i % 2);
        const KeyRange &range = visible[i % 4 / 2];
        if (key < range.begin || key >= range.end) s[i / 4][i % 4] = -INFINITY;
    }
}

// Turns scores into 2^(score - largest), and brings the sums so far to the new largest score.
__device__ __forceinline__ void exponentials(float (&s)[2][4], Results &r) {
    float base[2], factor[2];
    bool grown = false;
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
        float largest = fmaxf(fmaxf(s[0][2 * i], s[0][2 * i + 1]), fmaxf(s[1][2 * i], s[1][2 * i + 1]));
        largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 2));
        largest = fmaxf(largest, r.largest[i]);
        grown |= largest > r.largest[i];
        base[i] = exponent_base(largest);
        factor[i] = fast_exp2(r.largest[i] - base[i]);
        r.largest[i] = largest;
    }
    // Rare after the first tiles. Where nothing has grown the factors are 1, or 0 for sums of 0.
    if (__any_sync(ALL_LANES, grown)) {
        r.sum[0] *= factor[0];
        r.sum[1] *= factor[1];
#pragma unroll
        for (uint32_t i = 0; i < N_TILES; ++i) {
#pragma unroll
            for (uint32_t j = 0; j < 4; ++j) r.o[i][j] *= factor[j / 2];
        }
    }
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) s[i / 4][i % 4] = fast_exp2(s[i / 4][i % 4] - base[i % 4 / 2]);
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
        r.sum[i] += (s[0][2 * i] + s[0][2 * i + 1]) + (s[1][2 * i] + s[1][2 * i + 1]);
    }
}

// Makes the results of rows NaN that see a token of the current ones.
__device__ __forceinline__ void poison_rows(const float (&s)[2][4], Results &r) {
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) {
        if (s[i / 4][i % 4] != 0.0f) r.sum[i % 4 / 2] = __int_as_float(0x7fffffff);
    }
}

// Writes 4 columns from `d` on of the item's row `row`.
__device__ __forceinline__ void store_columns(const AttendParams &p, const AttendItem &item, uint32_t row, uint32_t d,
                                              float4 x) {
    if (item.partial != NO_PARTIAL) {
        *reinterpret_cast<float4 *>(p.partial_out + int64_t(item.partial + row) * HEAD_DIM + d) = x;
        return;
    }
    const PackedRows rows{item.first_row, item.kv_head, p.group};
    const int64_t at = packed_offset(rows, p.out.stride, HEAD_DIM, item.first_packed + row) + d;
    const bool f16 = BYTES ? p.dtype == Dtype::f16 : MMA == Dtype::f16;
    const uint32_t low = f16 ? pack_halves<Dtype::f16>(x.x, x.y) : pack_halves<Dtype::bf16>(x.x, x.y);
    const uint32_t high = f16 ? pack_halves<Dtype::f16>(x.z, x.w) : pack_halves<Dtype::bf16>(x.z, x.w);
    // Rows may start at any element.
    uint16_t *out = static_cast<uint16_t *>(p.out.data) + at;
    out[0] = uint16_t(low);
    out[1] = uint16_t(low >> 16);
    out[2] = uint16_t(high);
    out[3] = uint16_t(high >> 16);
}

// Brings this warp's sums to the largest score of all warps, divided by the sum of all warps.
__device__ __forceinline__ void normalise(const AttendParams &p, const AttendItem &item, Shared &shared, Results &r) {
    const uint32_t warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
        r.sum[i] += __shfl_xor_sync(ALL_LANES, r.sum[i], 1);
        r.sum[i] += __shfl_xor_sync(ALL_LANES, r.sum[i], 2);
        if (c == 0) {
            shared.largest[warp][g + 8 * i] = r.largest[i];
            shared.sums[warp][g + 8 * i] = r.sum[i];
        }
    }
    __syncthreads();
    float factor[2];
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
        const uint32_t row = g + 8 * i;
        float largest = -INFINITY, sum = 0.0f;
#pragma unroll
        for (uint32_t w = 0; w < NUM_WARPS; ++w) largest = fmaxf(largest, shared.largest[w][row]);
        const float base = exponent_base(largest);
#pragma unroll
        for (uint32_t w = 0; w < NUM_WARPS; ++w) sum += shared.sums[w][row] * fast_exp2(shared.largest[w][row] - base);
        // A row that saw no key has the result 0.
        factor[i] = sum == 0.0f ? 0.0f : fast_exp2(r.largest[i] - base) / sum * BYTES_PRODUCT_FACTOR<TYPE>;
        if (item.partial != NO_PARTIAL && warp == 0 && c == 0 && row < item.num_packed) {
            p.partial_lse[item.partial + row] = largest + log2f(sum);
        }
    }
#pragma unroll
    for (uint32_t i = 0; i < N_TILES; ++i) {
#pragma unroll
        for (uint32_t j = 0; j < 4; ++j) r.o[i][j] *= factor[j / 2];
    }
}

// Sums the warps' results and writes them.
__device__ __forceinline__ void merge(const AttendParams &p, const AttendItem &item, Shared &shared, Results &r) {
    const uint32_t warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    const uint32_t row = threadIdx.x / 8, column = threadIdx.x % 8 * 4;
    normalise(p, item, shared, r);
#pragma unroll
    for (uint32_t first = 0; first < N_TILES; first += 4) {
#pragma unroll
        for (uint32_t j = 0; j < 4 && first + j < N_TILES; ++j) {
#pragma unroll
            for (uint32_t i = 0; i < 4; ++i) {
                // Columns of 8-bit values: see multiply_values.
                const uint32_t d = BYTES ? 4 * (2 * c + i % 2) + j : 8 * j + 2 * c + i % 2;
                shared.slices[warp][g + i / 2 * 8][d] = r.o[first + j][i];
            }
        }
        __syncthreads();
        if (row < item.num_packed && first * 8 + column < HEAD_DIM) {
            float4 sum = *reinterpret_cast<const float4 *>(&shared.slices[0][row][column]);
#pragma unroll
            for (uint32_t w = 1; w < NUM_WARPS; ++w) {
                const float4 x = *reinterpret_cast<const float4 *>(&shared.slices[w][row][column]);
                sum = make_float4(sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w);
            }
            store_columns(p, item, row, first * 8 + column, sum);
        }
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(NUM_THREADS, CTAS_PER_SM)
    attend_decode(const __grid_constant__ AttendParams p) {
    extern __shared__ __align__(128) char dynamic_shared[];
    asm("// dynamic shared: %0" ::"n"(sizeof(Shared)));
    Shared &shared = *reinterpret_cast<Shared *>(dynamic_shared);
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t num_items = *p.num_items;
    Ring ring(p, shared_address(shared.ring[warp]), num_items);
    ring.fill();
    // What ldmatrix takes of q and of values has the same order, by rows first.
    const uint32_t q_address = shared_address(shared.q) + swizzled<Q_CHUNKS>(lane % 16, lane / 16);

    for (uint32_t i = blockIdx.x; i < num_items; i += gridDim.x) {
        const AttendItem item = p.items[i];
        stage_query(p, item, shared);
        __syncthreads();
        uint32_t q[Q_IN_REGISTERS ? K_STEPS : 1][4];
        if constexpr (Q_IN_REGISTERS) {
#pragma unroll
            for (uint32_t k = 0; k < K_STEPS; ++k) load_matrices(q[k], step_chunks<Q_CHUNKS>(q_address, 2 * k));
        }
        // Rows past the last are computed as it and not stored.
        const uint32_t last = item.num_packed - 1;
        const KeyRange visible[2] = {visible_keys(p, item, min(lane / 4, last)),
                                     visible_keys(p, item, min(lane / 4 + 8, last))};
        Results r = {{}, {-INFINITY, -INFINITY}, {}};
        for (uint32_t token = first_tile(item.kv_begin); token < item.kv_end; token += TILE_TOKENS) {
            float s[2][4];
            ring.wait();
            multiply_keys(s, q, q_address, ring.keys());
            const float factor = p.scale_log2 * BYTES_PRODUCT_FACTOR<TYPE>;
            if constexpr (BYTES) {
                scale_tokens(s, ring.key_scales(), factor);
            } else {
#pragma unroll
                for (uint32_t j = 0; j < 8; ++j) s[j / 4][j % 4] *= factor;
            }
            ring.refill_keys();
            finish_scores(s, p, visible, token);
            exponentials(s, r);
            ring.wait();
            if constexpr (BYTES) scale_tokens(s, ring.value_scales(), BYTES_INPUT_FACTOR<TYPE>);
            const uint32_t a[4] = {pack_halves<MMA>(s[0][0], s[0][1]), pack_halves<MMA>(s[0][2], s[0][3]),
                                   pack_halves<MMA>(s[1][0], s[1][1]), pack_halves<MMA>(s[1][2], s[1][3])};
            if (multiply_values(r.o, a, ring.values())) poison_rows(s, r);
            ring.refill_values();
        }
        merge(p, item, shared, r);
    }
}

}  // namespace pageloom
