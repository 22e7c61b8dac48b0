// Choices over a row of logits without sorting it: by counts or by weights, best tokens first,
// ties by the lower id. One CTA a row.
#pragma once

#include "block_sums.cuh"
#include "sampling.cuh"

namespace pageloom {

constexpr uint32_t NUM_BINS = 2048;
constexpr uint32_t LIST_SIZE = 2048;

// Shared memory of the functions below.
struct SelectScratch {
    BlockScratch block;
    uint32_t low[NUM_BINS];   // sums by bin: their low and high words
    uint32_t high[NUM_BINS];
    RankedToken list[LIST_SIZE];  // tokens, in no order
    uint32_t num_listed;          // more than LIST_SIZE: they did not fit
    uint64_t of_segment[MAX_WARPS];
    uint64_t before;
    uint64_t amount;
    uint32_t found;
};

// The largest logit of a row.
struct RowMax {
    float logit;
    uint32_t token;      // the first that has it
    RowStatus status;
    uint32_t first_bad;  // if not_a_number
};

// Leaves each thread's best token in the list.
__device__ __forceinline__ RowMax max_of(const LogitsRow &row, SelectScratch &s) {
    float best = -INFINITY;
    uint32_t token = 0, first_bad = NONE;
    row.each([&](uint32_t i, float x) {
        // Ids ascend: one that merely equals the best loses the tie.
        if (x > best) best = x, token = i;
        if (is_not_a_number(x) && first_bad == NONE) first_bad = i;
    });
    s.list[threadIdx.x] = {token, best};
    if (threadIdx.x == 0) s.num_listed = blockDim.x;
    const uint64_t mine = best == -INFINITY ? 0 : uint64_t(key_of(best)) << 32 | ~token;
    const uint64_t most = reduce_block<Largest>(mine, s.block);
    first_bad = ~uint32_t(reduce_block<Largest>(~first_bad, s.block));
    RowMax max;
    max.logit = logit_of(uint32_t(most >> 32));
    max.token = ~uint32_t(most);
    max.first_bad = first_bad;
    max.status = first_bad != NONE ? RowStatus::not_a_number
                 : most == 0       ? RowStatus::nothing_allowed
                                   : RowStatus::ok;
    return max;
}

// A head of the order: what has a greater logit, and of those with the same the ids up to `last`.
struct Threshold {
    float logit = -INFINITY;
    uint32_t last = NONE;

    __device__ __forceinline__ bool admits(uint32_t token, float x) const {
        return x > logit || (x == logit && token <= last);
    }
};

// Segments of a row: one a warp, each of a multiple of 4 tokens.
__device__ __forceinline__ uint32_t segment_size(const LogitsRow &row) {
    return (row.size + 4 * num_warps() - 1) / (4 * num_warps()) * 4;
}

// Sums amount(token, logit) over the row; the sums of its segments are left for `locate`.
template <class Amount>
__device__ __forceinline__ uint64_t sum_segments(const LogitsRow &row, const Amount &amount, SelectScratch &s) {
    const uint32_t size = segment_size(row);
    const uint32_t begin = min(warp_id() * size, row.size);
    uint64_t sum = 0;
    row.each(begin, min(begin + size, row.size), lane_id(), WARP, [&](uint32_t i, float x) { sum += amount(i, x); });
    sum = reduce_warp<Add>(sum);
    __syncthreads();
    if (lane_id() == 0) s.of_segment[warp_id()] = sum;
    __syncthreads();
    return reduce_warp<Add>(lane_id() < num_warps() ? s.of_segment[lane_id()] : 0);
}

// The first token at which the running sum exceeds `target`, which is less than the sum of the
// row, after `sum_segments` with the same amounts.
template <class Amount>
__device__ __forceinline__ uint32_t locate(const LogitsRow &row, const Amount &amount, uint64_t target, SelectScratch &s) {
    const uint64_t mine = lane_id() < num_warps() ? s.of_segment[lane_id()] : 0;
    const uint64_t through = sum_to_lane(mine);
    const uint32_t segment = __popc(__ballot_sync(ALL_LANES, through <= target));
    target -= __shfl_sync(ALL_LANES, through - mine, segment);
    const uint32_t size = segment_size(row);
    const uint32_t share = (size + blockDim.x - 1) / blockDim.x;
    const uint32_t segment_end = min((segment + 1) * size, row.size);
    const uint32_t begin = min(segment * size + threadIdx.x * share, segment_end);
    const uint32_t end = min(begin + share, segment_end);
    uint64_t sum = 0;
    for (uint32_t i = begin; i < end; ++i) sum += amount(i, row[i]);
    uint64_t reached = sum_before(sum, s.block);
    if (reached <= target && target < reached + sum) {
        for (uint32_t i = begin; i < end; ++i) {
            reached += amount(i, row[i]);
            if (reached > target) {
                s.found = i;
                break;
            }
        }
    }
    __syncthreads();
    return s.found;
}

__device__ __forceinline__ void clear_bins(SelectScratch &s) {
    __syncthreads();
    for (uint32_t bin = threadIdx.x; bin < NUM_BINS; bin += blockDim.x) s.low[bin] = s.high[bin] = 0;
    __syncthreads();
}

// Native 32-bit atomics with a carry: 64-bit ones on shared memory would be loops.
__device__ __forceinline__ void add_to_bin(SelectScratch &s, uint32_t bin, uint64_t amount) {
    const uint32_t low = uint32_t(amount);
    const uint32_t before = atomicAdd(&s.low[bin], low);
    const uint32_t high = uint32_t(amount >> 32) + (before + low < before);
    if (high != 0) atomicAdd(&s.high[bin], high);
}

// Finds the bin, from the highest down, at which the running sum reaches `wanted`.
// Leaves it in s.found, the sum before it in s.before and its own in s.amount.
__device__ __forceinline__ void find_bin(uint64_t wanted, SelectScratch &s) {
    __syncthreads();
    const uint32_t share = (NUM_BINS + blockDim.x - 1) / blockDim.x;
    const uint32_t first = min(threadIdx.x * share, NUM_BINS);
    const uint32_t end = min(first + share, NUM_BINS);
    auto amount = [&](uint32_t i) {
        const uint32_t bin = NUM_BINS - 1 - i;
        return uint64_t(s.high[bin]) << 32 | s.low[bin];
    };
    uint64_t sum = 0;
    for (uint32_t i = first; i < end; ++i) sum += amount(i);
    uint64_t reached = sum_before(sum, s.block);
    if (reached < wanted && wanted <= reached + sum) {
        for (uint32_t i = first; i < end; ++i) {
            const uint64_t here = amount(i);
            if (reached + here >= wanted) {
                s.found = NUM_BINS - 1 - i;
                s.before = reached;
                s.amount = here;
                break;
            }
            reached += here;
        }
    }
    __syncthreads();
}

// Every token counts one.
struct Count {
    static constexpr bool ONES = true;
    __device__ __forceinline__ uint64_t operator()(uint32_t, float) const { return 1; }
    __device__ __forceinline__ uint64_t each(float) const { return 1; }
};

// Finds the logit at which the running sum of amounts, best tokens first, reaches `wanted`: over the
// listed tokens or those of the row that are not under `cutoff`. Returns its key and lowers `wanted`
// by what better tokens have; the amount of all tokens with this logit is left in s.amount.
template <class Amount>
__device__ __forceinline__ uint32_t find_key(const LogitsRow &row, bool listed, float cutoff, const Amount &amount,
                                             uint64_t &wanted, SelectScratch &s) {
    // The bits of the key, 11, 11 and 10 at a time; `known` are those found so far.
    uint32_t known = 0;
    uint32_t num_unknown = 32;
    while (num_unknown > 0) {
        const uint32_t shift = num_unknown > 11 ? num_unknown - 11 : 0;
        const uint32_t mask = (1u << (num_unknown - shift)) - 1;
        auto count = [&](uint32_t i, float x) {
            const uint32_t key = key_of(x);
            const bool candidate = num_unknown == 32 ? x >= cutoff : key >> num_unknown == known;
            if (!candidate) return;
            const uint32_t bin = key >> shift & mask;
            if constexpr (Amount::ONES) {
                atomicAdd(&s.low[bin], 1u);
            } else {
                const uint64_t a = amount(i, x);
                if (a != 0) add_to_bin(s, bin, a);
            }
        };
        clear_bins(s);
        if (listed) {
            for (uint32_t i = threadIdx.x; i < s.num_listed; i += blockDim.x) count(s.list[i].token, s.list[i].logit);
        } else {
            row.each(count);
        }
        find_bin(wanted, s);
        known = known << (num_unknown - shift) | s.found;
        wanted -= s.before;
        num_unknown = shift;
    }
    return known;
}

// Lists the tokens that are not under `cutoff`. Returns whether they fit.
__device__ __forceinline__ bool list_from(const LogitsRow &row, float cutoff, SelectScratch &s) {
    if (cutoff == -INFINITY && row.size > LIST_SIZE) return false;
    __syncthreads();
    if (threadIdx.x == 0) s.num_listed = 0;
    __syncthreads();
    row.each([&](uint32_t i, float x) {
        if (x < cutoff) return;
        const uint32_t slot = atomicAdd(&s.num_listed, 1u);
        if (slot < LIST_SIZE) s.list[slot] = {i, x};
    });
    __syncthreads();
    return s.num_listed <= LIST_SIZE;
}

// The shortest head of the order whose amounts sum to `wanted` or more, where 0 < `wanted` <= the
// sum of the row; it ends at a logit that is not under `cutoff`. Of tokens with equal logits, the
// first ids have the amount `each(logit)`, and the rest have none.
template <class Amount>
__device__ __forceinline__ Threshold select(const LogitsRow &row, float cutoff, const Amount &amount, uint64_t wanted,
                                            SelectScratch &s) {
    const bool listed = list_from(row, cutoff, s);
    const uint32_t key = find_key(row, listed, cutoff, amount, wanted, s);
    Threshold head;
    head.logit = logit_of(key);
    // Only ties are left; how many of them make up what is still wanted?
    const uint64_t each = amount.each(head.logit);
    const uint64_t num_ties = s.amount / each;
    const uint64_t num_wanted = (wanted + each - 1) / each;
    if (num_wanted < num_ties) {
        auto is_tie = [&](uint32_t i, float x) -> uint64_t { return x == head.logit && amount(i, x) != 0; };
        sum_segments(row, is_tie, s);
        head.last = locate(row, is_tie, num_wanted - 1, s);
    }
    return head;
}

// The best `num_tokens` of the row, where 0 < `num_tokens` <= its size, right after `max_of`.
__device__ __forceinline__ Threshold select_best(const LogitsRow &row, uint32_t num_tokens, SelectScratch &s) {
    float cutoff = -INFINITY;
    if (num_tokens <= blockDim.x) {
        // As many threads have a best token at or over this: fewer tokens remain to be looked at.
        uint64_t wanted = num_tokens;
        cutoff = logit_of(find_key(row, true, cutoff, Count(), wanted, s));
    }
    return select(row, cutoff, Count(), num_tokens, s);
}

}  // namespace pageloom
