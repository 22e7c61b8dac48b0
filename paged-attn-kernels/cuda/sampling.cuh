// What adjust_logits, sample and logprobs have in common. `src/cuda/sample/params.rs` has the same
// structs: keep both alike.
#pragma once

#include <cfloat>
#include <cmath>

#include "numbers.cuh"
#include "types.cuh"

namespace pageloom {

constexpr uint32_t NONE = 0xffffffffu;

// A range of one of the lists that a batch's rows share.
struct ListRange {
    uint32_t begin;
    uint32_t end;
};

// How one token is drawn. Lists that are empty change nothing.
struct SampleRow {
    uint64_t seed;
    uint32_t logits_row;
    uint32_t position;             // of the token to be drawn
    float temperature;             // 0: the most likely token
    float top_p;                   // 1: all
    float min_p;                   // 0: all
    uint32_t top_k;                // 0: all
    float repetition_penalty;      // 1: none
    float frequency_penalty;
    float presence_penalty;
    uint32_t num_prompt_tokens;    // at the head of the history
    uint32_t adjusted_row;         // where adjust_logits writes and sample reads; NONE: the logits are used as they are
    ListRange history;             // of `tokens`: the tokens before it; empty if no penalty is on
    ListRange allowed;             // of `tokens`: if not empty, all others are masked
    ListRange banned;              // of `tokens`
    ListRange bias;                // of `bias_tokens` and `bias`: by ascending token
    uint32_t padding;
};

enum class RowStatus : uint32_t { ok = 0, not_a_number = 1, nothing_allowed = 2 };

struct SampleResult {
    uint32_t token;    // the drawn one; if not_a_number, the first whose logit is none
    RowStatus status;
};

// Of adjust_logits and sample. One CTA a row.
struct SampleParams {
    RowsView logits;  // [logits rows, vocab_size]
    RowsView adjusted;  // f32 [adjusted rows, vocab_size], scratch
    const SampleRow *rows;  // [rows]
    const uint32_t *tokens;
    const uint32_t *bias_tokens;
    const float *bias;
    SampleResult *results;  // [rows]
    uint32_t vocab_size;
    Dtype dtype;  // of the logits
};

// Which log-probabilities to compute of one row.
struct LogprobRow {
    uint32_t logits_row;
    uint32_t drawn;    // the element of `drawn` whose token it is; NONE: `token`
    uint32_t token;
    uint32_t num_top;  // at most MAX_TOP
};

// Log-probability of a logit x: x - max - ln(total * 2^-40). The host takes the logarithm.
struct LogprobResult {
    uint64_t total;    // of the row's weights, in units
    float max;
    float logit;       // of the token; -inf if it is outside of the vocabulary
    uint32_t token;    // if not_a_number, the first whose logit is none
    uint32_t rank;     // of the token, from 1
    uint32_t num_top;  // fewer than asked for if the rest is masked
    RowStatus status;
};

struct RankedToken {
    uint32_t token;
    float logit;
};

constexpr uint32_t MAX_TOP = 128;

// Of logprobs. One CTA a row.
struct LogprobParams {
    RowsView logits;
    const LogprobRow *rows;      // [rows]
    const SampleResult *drawn;   // results of sample
    LogprobResult *results;      // [rows]
    RankedToken *top;            // [rows, top_stride], best first
    uint32_t top_stride;
    uint32_t vocab_size;
    Dtype dtype;
    uint32_t padding;
};

// One row of logits.
struct LogitsRow {
    const void *data;
    uint32_t size;
    Dtype dtype;
    bool aligned;  // to four elements

    __device__ __forceinline__ float operator[](uint32_t i) const { return load_as_f32(data, i, dtype); }

    // Elements i to i + 3; i is a multiple of 4.
    __device__ __forceinline__ void load_four(uint32_t i, float (&x)[4]) const {
        if (dtype == Dtype::f32) {
            const float *from = static_cast<const float *>(data) + i;
            float4 v;
            if (aligned)
                v = *reinterpret_cast<const float4 *>(from);
            else
                v = make_float4(from[0], from[1], from[2], from[3]);
            x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
            return;
        }
        const ushort *from = static_cast<const ushort *>(data) + i;
        ushort4 v;
        if (aligned)
            v = *reinterpret_cast<const ushort4 *>(from);
        else
            v = make_ushort4(from[0], from[1], from[2], from[3]);
        const bool bf16 = dtype == Dtype::bf16;
        x[0] = bf16 ? bf16_bits_to_f32(v.x) : __half2float(__ushort_as_half(v.x));
        x[1] = bf16 ? bf16_bits_to_f32(v.y) : __half2float(__ushort_as_half(v.y));
        x[2] = bf16 ? bf16_bits_to_f32(v.z) : __half2float(__ushort_as_half(v.z));
        x[3] = bf16 ? bf16_bits_to_f32(v.w) : __half2float(__ushort_as_half(v.w));
    }

    // Visits elements `begin` to `end - 1`, four at a time: those of one of `num_threads` threads, in
    // ascending order. `begin` is a multiple of 4.
    template <class Visit>
    __device__ __forceinline__ void each(uint32_t begin, uint32_t end, uint32_t thread, uint32_t num_threads,
                                         Visit visit) const {
        for (uint32_t i = begin + 4 * thread; i < end; i += 4 * num_threads) {
            float x[4];
            if (end - i >= 4) {
                load_four(i, x);
            } else {
#pragma unroll
                for (uint32_t k = 0; k < 4; ++k) x[k] = k < end - i ? (*this)[i + k] : 0.0f;
            }
#pragma unroll
            for (uint32_t k = 0; k < 4; ++k)
                if (k < end - i) visit(i + k, x[k]);
        }
    }

    template <class Visit>
    __device__ __forceinline__ void each(Visit visit) const {
        each(0, size, threadIdx.x, blockDim.x, visit);
    }
};

__device__ __forceinline__ LogitsRow row_of(const RowsView &rows, uint32_t row, uint32_t size, Dtype dtype) {
    const uint32_t bytes = dtype == Dtype::f32 ? 4 : 2;
    const uint64_t data = reinterpret_cast<uint64_t>(rows.data) + row * rows.stride * bytes;
    return {reinterpret_cast<const void *>(data), size, dtype, data % (4 * bytes) == 0};
}

// Ascending with x; both zeros are one. Not for NaN.
__device__ __forceinline__ uint32_t key_of(float x) {
    const uint32_t bits = __float_as_uint(__fadd_rn(x, 0.0f));
    return bits ^ (static_cast<int32_t>(bits) < 0 ? 0xffffffffu : 0x80000000u);
}

__device__ __forceinline__ float logit_of(uint32_t key) {
    return __uint_as_float(key ^ (static_cast<int32_t>(key) < 0 ? 0x80000000u : 0xffffffffu));
}

__device__ __forceinline__ bool is_not_a_number(float x) { return !(x < INFINITY); }

}  // namespace pageloom
