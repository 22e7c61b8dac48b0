// What log-probabilities are made of: a token's logit and rank, the best tokens, and the sum of a
// row's weights. Of the logits as the model gave them.
//
//   logits   [logits rows, vocab_size]  f32, bf16 or f16
//   results  [rows]
//   top      [rows, top_stride]         best first
//
// One CTA a row. The sum is exact: the host's logarithm of it gives the CPU's numbers.
#include "select.cuh"
#include "weights.cuh"

namespace pageloom {

struct TopScratch {
    RankedToken tokens[MAX_TOP];
    uint32_t num_tokens;
};

__device__ __forceinline__ bool is_better(const RankedToken &a, const RankedToken &b) {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

// The best `num_top` tokens that are not masked, in order, to `out`. Returns their number.
__device__ __forceinline__ uint32_t write_top(const LogitsRow &row, uint32_t num_top, RankedToken *out,
                                              SelectScratch &s, TopScratch &top) {
    num_top = min(min(num_top, MAX_TOP), row.size);
    if (num_top == 0) return 0;
    const Threshold head = select_best(row, num_top, s);
    if (threadIdx.x == 0) top.num_tokens = 0;
    __syncthreads();
    row.each([&](uint32_t i, float x) {
        if (x != -INFINITY && head.admits(i, x)) top.tokens[atomicAdd(&top.num_tokens, 1u)] = {i, x};
    });
    __syncthreads();
    const uint32_t found = top.num_tokens;
    for (uint32_t i = threadIdx.x; i < found; i += blockDim.x) {
        const RankedToken mine = top.tokens[i];
        uint32_t place = 0;
        for (uint32_t k = 0; k < found; ++k) place += is_better(top.tokens[k], mine);
        out[place] = mine;
    }
    return found;
}

extern "C" __global__ void __launch_bounds__(1024, 1) logprobs(const __grid_constant__ LogprobParams p) {
    __shared__ SelectScratch scratch;
    __shared__ TopScratch top;
    const LogprobRow params = p.rows[blockIdx.x];
    const LogitsRow row = row_of(p.logits, params.logits_row, p.vocab_size, p.dtype);
    LogprobResult result{0, 0.0f, -INFINITY, params.token, 0, 0, RowStatus::ok};
    if (params.drawn != NONE) {
        result.token = p.drawn[params.drawn].token;
        result.status = p.drawn[params.drawn].status;
    }
    if (result.status == RowStatus::ok) {
        const RowMax max = max_of(row, scratch);
        result.status = max.status;
        result.max = max.logit;
        if (max.status == RowStatus::not_a_number) result.token = max.first_bad;
    }
    if (result.status == RowStatus::ok) {
        if (result.token < row.size) result.logit = row[result.token];
        const Weights weights(result.max, 1.0f);
        uint64_t sum = 0, num_better = 0;
        row.each([&](uint32_t i, float x) {
            sum += weights(x).units;
            num_better += i < result.token ? x >= result.logit : x > result.logit;
        });
        result.total = reduce_block<Add>(sum, scratch.block);
        result.rank = uint32_t(reduce_block<Add>(num_better, scratch.block)) + 1;
        RankedToken *out = p.top + uint64_t(blockIdx.x) * p.top_stride;
        result.num_top = write_top(row, min(params.num_top, p.top_stride), out, scratch, top);
    }
    if (threadIdx.x == 0) p.results[blockIdx.x] = result;
}

}  // namespace pageloom
