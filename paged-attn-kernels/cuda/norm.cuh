// What rms_norm and layer_norm have in common: a group of threads for each row, which is read once.
//
// A group is 1, 2, 4, .. 32 threads, of which several share a CTA, or a larger multiple of 32, which is
// a CTA. Each thread keeps up to KEPT pieces of the row in registers; what is beyond
// them is read again. The order of sums depends on the width and the group alone.
#pragma once

#include "elementwise.cuh"
#include "pieces.cuh"

namespace pageloom {

constexpr int NORM_MAX_THREADS = 1024;

// The sum over the group, in all of its threads. All threads of the CTA must call it.
__device__ __forceinline__ float group_sum(float x, uint32_t group) {
    __shared__ float sums[NORM_MAX_THREADS / 32];
    const uint32_t lanes = min(group, 32u);
    for (uint32_t mask = lanes / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(0xffffffffu, x, mask);
    if (group <= 32) return x;
    const uint32_t lane = threadIdx.x % 32;
    // The sums of an earlier call have been read.
    __syncthreads();
    if (lane == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    x = lane < group / 32 ? sums[lane] : 0.0f;
    for (uint32_t mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(0xffffffffu, x, mask);
    return x;
}

// LAYER: minus the mean, over the standard deviation. Else: over the root of the mean of squares.
template <class T, bool VECTOR, bool LAYER> struct NormRow {
    using Part = Piece<T, VECTOR>;
    static constexpr int N = Part::N;
    // 16384 elements of a group of 1024 threads.
    static constexpr int KEPT = VECTOR ? 16 / N : 4;

    const NormParams &p;
    const T *x;
    T *residual;  // null: none
    T *out;
    uint32_t num_pieces;  // 0: a thread that has no row
    uint32_t lane;        // of the group
    Part kept[KEPT];

    // Calls `f(numbers, piece)` for each of this thread's pieces.
    template <class F> __device__ __forceinline__ void each(F f) {
        float numbers[N];
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            const uint32_t piece = lane + k * p.group;
            if (piece < num_pieces) {
                kept[k].get(numbers);
                f(numbers, piece);
            }
        }
        const T *rest = residual != nullptr ? residual : x;
        for (uint32_t piece = lane + KEPT * p.group; piece < num_pieces; piece += p.group) {
            Part::load(rest + piece * N).get(numbers);
            f(numbers, piece);
        }
    }

    static __device__ __forceinline__ Part added(const Part &a, const Part &b) {
        float sum[N], y[N];
        a.get(sum);
        b.get(y);
#pragma unroll
        for (int i = 0; i < N; i++) sum[i] += y[i];
        return Part::of(sum);
    }

    // Reads the row; the residual becomes the sum. What is normed is that, as it was rounded.
    __device__ __forceinline__ void load() {
        Part other[KEPT];
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            const uint32_t piece = lane + k * p.group;
            if (piece < num_pieces) {
                kept[k] = Part::load(x + piece * N);
                if (residual != nullptr) other[k] = Part::load(residual + piece * N);
            }
        }
        if (residual == nullptr) return;
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            const uint32_t piece = lane + k * p.group;
            if (piece < num_pieces) {
                kept[k] = added(kept[k], other[k]);
                kept[k].store(residual + piece * N);
            }
        }
        for (uint32_t piece = lane + KEPT * p.group; piece < num_pieces; piece += p.group) {
            T *at = residual + piece * N;
            added(Part::load(x + piece * N), Part::load(at)).store(at);
        }
    }

    __device__ __forceinline__ void run() {
        load();
        float mean = 0.0f;
        if constexpr (LAYER) {
            float sum = 0.0f;
            each([&](const float(&numbers)[N], uint32_t) {
#pragma unroll
                for (int i = 0; i < N; i++) sum += numbers[i];
            });
            mean = group_sum(sum, p.group) / p.width;
        }
        float squares = 0.0f;
        each([&](const float(&numbers)[N], uint32_t) {
#pragma unroll
            for (int i = 0; i < N; i++) squares += (numbers[i] - mean) * (numbers[i] - mean);
        });
        const float scale = 1.0f / sqrtf(group_sum(squares, p.group) / p.width + p.eps);
        each([&](const float(&numbers)[N], uint32_t piece) {
            float y[N], w[N];
#pragma unroll
            for (int i = 0; i < N; i++) y[i] = (numbers[i] - mean) * scale;
            if (p.weight != nullptr) {
                load_weights(p.weight, piece * N, p.weight_dtype, w);
#pragma unroll
                for (int i = 0; i < N; i++) y[i] *= w[i];
            }
            if (p.bias != nullptr) {
                load_weights(p.bias, piece * N, p.weight_dtype, w);
#pragma unroll
                for (int i = 0; i < N; i++) y[i] += w[i];
            }
            Part::of(y).store(out + piece * N);
        });
    }
};

template <class T, bool VECTOR, bool LAYER> __device__ __forceinline__ void norm_rows(const NormParams &p) {
    const uint32_t num_rows = p.num_tokens * p.num_heads;
    // All threads of a CTA take every turn, since they meet in the sums.
    const uint32_t per_cta = blockDim.x / p.group;
    for (uint32_t first = blockIdx.x * per_cta; first < num_rows; first += gridDim.x * per_cta) {
        const uint32_t row = first + threadIdx.x / p.group;
        const bool has_row = row < num_rows;
        const uint32_t token = has_row ? row / p.num_heads : 0;
        const int64_t column = has_row ? int64_t(row % p.num_heads) * p.width : 0;
        T *residual = static_cast<T *>(p.residual.data);
        NormRow<T, VECTOR, LAYER> one{p,
                                      row_of<T>(p.x, token) + column,
                                      residual == nullptr ? nullptr : row_of<T>(p.residual, token) + column,
                                      row_of<T>(p.out, token) + column,
                                      has_row ? p.width / Piece<T, VECTOR>::N : 0,
                                      threadIdx.x % p.group};
        one.run();
    }
}

template <class T, bool LAYER> __device__ __forceinline__ void norm_of(const NormParams &p) {
    const bool rows = aligned<T>(p.x) && aligned<T>(p.residual) && aligned<T>(p.out);
    if (rows && aligned(p.weight) && aligned(p.bias) && p.width % Piece<T, true>::N == 0) {
        norm_rows<T, true, LAYER>(p);
    } else {
        norm_rows<T, false, LAYER>(p);
    }
}

template <bool LAYER> __device__ __forceinline__ void norm(const NormParams &p) {
    switch (p.dtype) {
        case Dtype::bf16: norm_of<__nv_bfloat16, LAYER>(p); break;
        case Dtype::f16: norm_of<__half, LAYER>(p); break;
        default: norm_of<float, LAYER>(p); break;
    }
}

}  // namespace pageloom
