// Draws one token from each row: the most likely one, or by temperature, min-p, top-k and top-p.
//
//   logits    [logits rows, vocab_size]    f32, bf16 or f16
//   adjusted  [adjusted rows, vocab_size]  f32, from adjust_logits; for rows with an adjusted_row
//   results   [rows]
//
// The token is the first, by ascending id, at which the running sum of weights exceeds u times
// their total, u being the generator's number for (seed, position). Weights are whole units, so the
// result is that of the CPU's sampler for any division of the row among threads. One CTA a row.
#include "philox.cuh"
#include "select.cuh"
#include "weights.cuh"

namespace pageloom {

// What may be drawn, by its weight in units.
struct Likely {
    static constexpr bool ONES = false;
    Weights weights;
    Threshold head;
    float min_p;

    __device__ __forceinline__ uint64_t operator()(uint32_t token, float logit) const {
        return head.admits(token, logit) ? each(logit) : 0;
    }
    __device__ __forceinline__ uint64_t each(float logit) const {
        const Weight w = weights(logit);
        return w.value >= min_p ? w.units : 0;
    }
};

// A logit under which all tokens together have less than half of what top-p leaves out of `total`
// units: the nucleus lies above it.
__device__ __forceinline__ float least_in_nucleus(const SampleRow &params, const Weights &weights, uint64_t total, uint32_t size) {
    const float outside = (1.0f - params.top_p) * (float(total) * 0x1p-40f);
    // The margin covers rounding, here and in the weights.
    return weights.max + weights.temperature * (__logf(0.5f * outside / float(size)) - 0.01f);
}

__device__ __forceinline__ uint32_t draw(const LogitsRow &row, const SampleRow &params, float max, SelectScratch &s) {
    Likely likely{Weights(max, params.temperature), Threshold(), params.min_p};
    if (params.top_k > 0 && params.top_k < row.size) likely.head = select_best(row, params.top_k, s);
    uint64_t total = 0;
    for (bool cut = params.top_p < 1.0f;; cut = false) {
        total = sum_segments(row, likely, s);
        if (!cut) break;
        const double share = __dmul_rn(double(params.top_p), __ull2double_rn(total));
        const float cutoff = fmaxf(least_in_nucleus(params, likely.weights, total, row.size), likely.head.logit);
        Threshold nucleus = select(row, cutoff, likely, __double2ull_ru(share), s);
        if (nucleus.logit == likely.head.logit) nucleus.last = min(nucleus.last, likely.head.last);
        likely.head = nucleus;
    }
    return locate(row, likely, __umul64hi(total, uniform_bits(params.seed, params.position)), s);
}

extern "C" __global__ void __launch_bounds__(1024, 1) sample(const __grid_constant__ SampleParams p) {
    __shared__ SelectScratch scratch;
    const SampleRow params = p.rows[blockIdx.x];
    LogitsRow row = row_of(p.logits, params.logits_row, p.vocab_size, p.dtype);
    if (params.adjusted_row != NONE) {
        if (p.results[blockIdx.x].status != RowStatus::ok) return;
        row = row_of(p.adjusted, params.adjusted_row, p.vocab_size, Dtype::f32);
    }
    const RowMax max = max_of(row, scratch);
    SampleResult result{max.token, max.status};
    if (max.status == RowStatus::not_a_number) result.token = max.first_bad;
    if (max.status == RowStatus::ok && params.temperature > 0.0f)
        result.token = draw(row, params, max.logit, scratch);
    if (threadIdx.x == 0) p.results[blockIdx.x] = result;
}

}  // namespace pageloom
