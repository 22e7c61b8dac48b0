// Everything that changes logits before a draw: allowed and banned tokens, bias, penalties.
//
//   logits    [logits rows, vocab_size]    f32, bf16 or f16
//   rows      [rows]                       those with an adjusted_row
//   adjusted  [adjusted rows, vocab_size]  f32
//   results   [rows]                       status of the logits
//
// One CTA a row. A row of `adjusted` holds a word of marks for each token first, then its logit.
#include "block_sums.cuh"
#include "sampling.cuh"

namespace pageloom {

constexpr uint32_t IN_PROMPT = 1;
constexpr uint32_t GENERATED = 2;  // as often as it was generated: the bits up to BIASED count
constexpr uint32_t BIASED = 1u << 29;
constexpr uint32_t ALLOWED = 1u << 30;
constexpr uint32_t BANNED = 1u << 31;

// Changes an unmasked logit and keeps it finite.
__device__ __forceinline__ float kept_finite(float before, float after) {
    return before == -INFINITY ? before : fminf(fmaxf(after, -FLT_MAX), FLT_MAX);
}

__device__ __forceinline__ float masked(const SampleRow &row, uint32_t marks, float x) {
    const bool only_allowed = row.allowed.begin < row.allowed.end;
    const bool out = (only_allowed && !(marks & ALLOWED)) || (marks & BANNED);
    return out ? -INFINITY : x;
}

__device__ __forceinline__ float penalised(const SampleRow &row, uint32_t marks, float x) {
    const uint32_t seen = marks % BIASED;
    if (seen == 0) return x;
    const float repetition = row.repetition_penalty;
    x = kept_finite(x, x > 0.0f ? __fdiv_rn(x, repetition) : __fmul_rn(x, repetition));
    const uint32_t num_generated = seen / GENERATED;
    if (num_generated == 0) return x;
    const float frequency = __fmul_rn(row.frequency_penalty, __uint2float_rn(num_generated));
    return kept_finite(x, __fsub_rn(x, __fadd_rn(frequency, row.presence_penalty)));
}

__device__ __forceinline__ void mark(const SampleParams &p, const SampleRow &row, uint32_t *marks) {
    const uint32_t thread = threadIdx.x, step = blockDim.x;
    for (uint32_t i = row.history.begin + thread; i < row.history.end; i += step) {
        const uint32_t token = p.tokens[i];
        if (token >= p.vocab_size) continue;
        if (i - row.history.begin < row.num_prompt_tokens)
            atomicOr(&marks[token], IN_PROMPT);
        else
            atomicAdd(&marks[token], GENERATED);
    }
    for (uint32_t i = row.allowed.begin + thread; i < row.allowed.end; i += step)
        if (p.tokens[i] < p.vocab_size) atomicOr(&marks[p.tokens[i]], ALLOWED);
    for (uint32_t i = row.banned.begin + thread; i < row.banned.end; i += step)
        if (p.tokens[i] < p.vocab_size) atomicOr(&marks[p.tokens[i]], BANNED);
    for (uint32_t i = row.bias.begin + thread; i < row.bias.end; i += step)
        if (p.bias_tokens[i] < p.vocab_size) atomicOr(&marks[p.bias_tokens[i]], BIASED);
}

// Biases of one token are adjacent and add up in their order, before any penalty.
__device__ __forceinline__ void add_biases(const SampleParams &p, const SampleRow &row, const LogitsRow &logits,
                                           uint32_t *marks) {
    for (uint32_t i = row.bias.begin + threadIdx.x; i < row.bias.end; i += blockDim.x) {
        const uint32_t token = p.bias_tokens[i];
        if (token >= p.vocab_size || (i > row.bias.begin && p.bias_tokens[i - 1] == token)) continue;
        float x = masked(row, marks[token], logits[token]);
        for (uint32_t k = i; k < row.bias.end && p.bias_tokens[k] == token; ++k)
            x = kept_finite(x, __fadd_rn(x, p.bias[k]));
        marks[token] = __float_as_uint(penalised(row, marks[token], x));
    }
}

extern "C" __global__ void __launch_bounds__(1024, 1) adjust_logits(const __grid_constant__ SampleParams p) {
    __shared__ BlockScratch scratch;
    const SampleRow row = p.rows[blockIdx.x];
    if (row.adjusted_row == NONE) return;
    const LogitsRow logits = row_of(p.logits, row.logits_row, p.vocab_size, p.dtype);
    uint32_t *marks = static_cast<uint32_t *>(p.adjusted.data) + row.adjusted_row * p.adjusted.stride;
    for (uint32_t i = threadIdx.x; i < p.vocab_size; i += blockDim.x) marks[i] = 0;
    __syncthreads();
    mark(p, row, marks);
    __syncthreads();
    uint32_t first_bad = NONE;
    for (uint32_t i = threadIdx.x; i < p.vocab_size; i += blockDim.x) {
        const float x = logits[i];
        const uint32_t m = marks[i];
        if (is_not_a_number(x) && first_bad == NONE) first_bad = i;
        if (!(m & BIASED)) marks[i] = __float_as_uint(penalised(row, m, masked(row, m, x)));
    }
    first_bad = ~uint32_t(reduce_block<Largest>(~first_bad, scratch));
    // Marks of biased tokens are still there. A token's own thread left them alone.
    add_biases(p, row, logits, marks);
    if (threadIdx.x == 0) p.results[blockIdx.x] = {first_bad, first_bad == NONE ? RowStatus::ok : RowStatus::not_a_number};
}

}  // namespace pageloom
