// What a warp of attend_prefill does with one tile of keys: scores, mask, online softmax, weighted sum.
//
// With lane = 4 * g + c, a lane holds columns 8n + 2c and 8n + 2c + 1 of rows g (elements 0 and 1) and
// g + 8 (elements 2 and 3) of each 16 x 8 tile: of scores over keys, and of sums over dimensions.
//
// Source: Dao 2023, "FlashAttention-2".
#pragma once

#include "prefill_shape.cuh"

namespace pageloom {

// A row's reference is left alone until a score is larger by more than this (in powers of two): the
// sums are rescaled rarely, and the weights stay below 2^8, far inside the range of f16.
constexpr float PREFILL_SLACK = 8.0f;

template <class S>
struct PrefillScores {
    float x[S::ROW_TILES][S::KEY_TILES][4];
};

// Running sums of a warp's rows. A lane's `sum` covers its own columns only.
template <class S>
struct PrefillSums {
    float out[S::ROW_TILES][S::DIM_TILES][4];
    float reference[S::ROW_TILES][2];
    float sum[S::ROW_TILES][2];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (uint32_t m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
            for (uint32_t n = 0; n < S::DIM_TILES * 4; ++n) out[m][n / 4][n % 4] = 0.0f;
            reference[m][0] = reference[m][1] = -INFINITY;
            sum[m][0] = sum[m][1] = 0.0f;
        }
    }
};

// `x`, of which the compiler believes that it changes: else it keeps what follows from it over the whole
// loop, in registers that are all taken.
__device__ __forceinline__ uint32_t recomputed(uint32_t x) {
    asm volatile("" : "+r"(x));
    return x;
}

__device__ __forceinline__ float recomputed(float x) {
    asm volatile("" : "+f"(x));
    return x;
}

// From the address of chunk 0 or 1 of a row to that of chunk 2 * step, or 2 * step + 1.
template <class S>
__device__ __forceinline__ uint32_t chunk_step(uint32_t address, uint32_t step) {
    constexpr uint32_t MASK = SWIZZLED_CHUNKS<S::CHUNKS> - 1;
    return (address ^ (2 * step & MASK) * 16) + (2 * step & ~MASK) * 16;
}

// Where this lane's row of ldmatrix's first four matrices is in a tile of values, and in a warp's part of
// Q: 16 rows of chunk 0, then of chunk 1.
template <class S>
__device__ __forceinline__ uint32_t lane_offset() {
    const uint32_t lane = thread_index() % 32;
    return swizzled<S::CHUNKS>(lane % 16, lane / 16);
}

// As lane_offset, in a tile of keys: both chunks of 8 rows, then of the next 8.
template <class S>
__device__ __forceinline__ uint32_t key_lane_offset() {
    const uint32_t lane = thread_index() % 32;
    return swizzled<S::CHUNKS>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
}

// scores = Q * K^T. `base`: of shared memory.
template <class S>
__device__ __forceinline__ void score_keys(PrefillScores<S> &scores, uint32_t base) {
    const uint32_t q = recomputed(base + S::Q + thread_index() / 32 * S::WARP_ROWS * S::ROW_BYTES + lane_offset<S>());
    const uint32_t k = recomputed(base + S::K + key_lane_offset<S>());
#pragma unroll
    for (uint32_t m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
        for (uint32_t n = 0; n < S::KEY_TILES * 4; ++n) scores.x[m][n / 4][n % 4] = 0.0f;
    }
#pragma unroll
    for (uint32_t step = 0; step < S::DIM / 16; ++step) {
        uint32_t a[S::ROW_TILES][4];
#pragma unroll
        for (uint32_t m = 0; m < S::ROW_TILES; ++m) {
            load_matrices(a[m], chunk_step<S>(q, step) + m * 16 * S::ROW_BYTES);
        }
#pragma unroll
        for (uint32_t n = 0; n < S::KEY_TILES; n += 2) {
            uint32_t b[4];
            load_matrices(b, chunk_step<S>(k, step) + n * 8 * S::ROW_BYTES);
#pragma unroll
            for (uint32_t m = 0; m < S::ROW_TILES; ++m) {
                mma_16x8x16<S::TILE_TYPE>(scores.x[m][n], a[m], b[0], b[1]);
                mma_16x8x16<S::TILE_TYPE>(scores.x[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// Multiplies columns by `scales` in shared memory, one for each key of the tile.
template <class S>
__device__ __forceinline__ void scale_columns(PrefillScores<S> &scores, const float *scales) {
    scales += thread_index() % 4 * 2;
#pragma unroll
    for (uint32_t n = 0; n < S::KEY_TILES; ++n) {
        const float2 scale = *reinterpret_cast<const float2 *>(scales + n * 8);
#pragma unroll
        for (uint32_t m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
            for (uint32_t i = 0; i < 4; ++i) scores.x[m][n][i] *= i % 2 == 0 ? scale.x : scale.y;
        }
    }
}

// Caps scores and multiplies them by `scale`, which is times log2(e).
template <class S>
__device__ __forceinline__ void cap_scores(PrefillScores<S> &scores, float scale, float cap) {
    cap = recomputed(cap);
#pragma unroll
    for (uint32_t m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
        for (uint32_t n = 0; n < S::KEY_TILES * 4; ++n) {
            float &x = scores.x[m][n / 4][n % 4];
            x = capped_score(x * scale, cap);
        }
    }
}

// Scores of keys that their row does not see become -inf. `rows`: keys of this lane's row 0 of the
// warp's, in shared memory. `first_key`: of this lane's column 0.
template <class S>
__device__ __forceinline__ void mask_scores(PrefillScores<S> &scores, const KeyRange *rows, uint32_t first_key) {
#pragma unroll
    for (uint32_t m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
            const KeyRange keys = rows[m * 16 + half * 8];
#pragma unroll
            for (uint32_t n = 0; n < S::KEY_TILES * 2; ++n) {
                const uint32_t key = first_key + n / 2 * 8 + n % 2;
                float &x = scores.x[m][n / 2][half * 2 + n % 2];
                x = contains(keys, key) ? x : -INFINITY;
            }
        }
    }
}

// The largest score of a row in the four lanes that hold it.
template <class S>
__device__ __forceinline__ float row_max(const PrefillScores<S> &scores, uint32_t m, uint32_t half) {
    float top = scores.x[m][0][half * 2];
#pragma unroll
    for (uint32_t n = 1; n < S::KEY_TILES * 2; ++n) top = fmaxf(top, scores.x[m][n / 2][half * 2 + n % 2]);
    top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 1));
    return fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));
}

// Raises the rows' references where scores ask for it, and rescales their sums.
template <class S>
__device__ __forceinline__ void raise_references(PrefillSums<S> &sums, const PrefillScores<S> &scores, float scale) {
    float factor[S::ROW_TILES][2];
    bool raised = false;
#pragma unroll
    for (uint32_t m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
            const float top = row_max(scores, m, half), old = sums.reference[m][half];
            // No number, so no raise, where both are -inf.
            const bool raise = (top - old) * scale > PREFILL_SLACK;
            factor[m][half] = raise ? fast_exp2((old - top) * scale) : 1.0f;
            sums.reference[m][half] = raise ? top : old;
            raised |= raise;
        }
    }
    if (!__any_sync(ALL_LANES, raised)) return;
#pragma unroll
    for (uint32_t m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
            sums.sum[m][half] *= factor[m][half];
#pragma unroll
            for (uint32_t n = 0; n < S::DIM_TILES * 2; ++n) sums.out[m][n / 2][half * 2 + n % 2] *= factor[m][half];
        }
    }
}

// Turns scores into weights 2^(scale * (score - reference)) and adds them to the rows' sums.
template <class S>
__device__ __forceinline__ void weigh_scores(PrefillSums<S> &sums, PrefillScores<S> &scores, float scale) {
    raise_references(sums, scores, scale);
#pragma unroll
    for (uint32_t m = 0; m < S::ROW_TILES; ++m) {
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
            // A row that has seen no key yet has only scores of -inf.
            const float shift = exponent_base(sums.reference[m][half]) * scale;
#pragma unroll
            for (uint32_t n = 0; n < S::KEY_TILES * 2; ++n) {
                float &x = scores.x[m][n / 2][half * 2 + n % 2];
                x = fast_exp2(__fmaf_rn(x, scale, -shift));
                sums.sum[m][half] += x;
            }
        }
    }
}

// sums += weights * V. `base`: of shared memory. `scales` multiply the weights, one for each key, where
// pages have them.
template <class S>
__device__ __forceinline__ void add_values(PrefillSums<S> &sums, const PrefillScores<S> &weights, uint32_t base,
                                           const float *scales) {
    const uint32_t v = recomputed(base + S::V + lane_offset<S>());
    scales += thread_index() % 4 * 2;
#pragma unroll
    for (uint32_t step = 0; step < S::KEYS / 16; ++step) {
        uint32_t a[S::ROW_TILES][4];
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            float2 scale = {1.0f, 1.0f};
            if constexpr (S::SCALED) scale = *reinterpret_cast<const float2 *>(scales + step * 16 + i / 2 * 8);
#pragma unroll
            for (uint32_t m = 0; m < S::ROW_TILES; ++m) {
                const float *pair = &weights.x[m][2 * step + i / 2][i % 2 * 2];
                a[m][i] = pack_halves<S::TILE_TYPE>(pair[0] * scale.x, pair[1] * scale.y);
            }
        }
#pragma unroll
        for (uint32_t n = 0; n < S::DIM_TILES; n += 2) {
            uint32_t b[4];
            load_matrices_transposed(b, chunk_step<S>(v, n / 2) + step * 16 * S::ROW_BYTES);
#pragma unroll
            for (uint32_t m = 0; m < S::ROW_TILES; ++m) {
                mma_16x8x16<S::TILE_TYPE>(sums.out[m][n], a[m], b[0], b[1]);
                mma_16x8x16<S::TILE_TYPE>(sums.out[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

}  // namespace pageloom
