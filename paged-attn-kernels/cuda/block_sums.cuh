// Reductions and scans over a CTA of up to 1024 threads, a multiple of 32.
#pragma once

#include "types.cuh"

namespace pageloom {

constexpr uint32_t WARP = 32;
constexpr uint32_t ALL_LANES = 0xffffffffu;
constexpr uint32_t MAX_WARPS = 32;

// Shared memory of the functions below. Each waits for its readers before it writes.
struct BlockScratch {
    uint64_t of_warp[MAX_WARPS];
};

__device__ __forceinline__ uint32_t lane_id() { return threadIdx.x % WARP; }
__device__ __forceinline__ uint32_t warp_id() { return threadIdx.x / WARP; }
__device__ __forceinline__ uint32_t num_warps() { return blockDim.x / WARP; }

struct Add {
    static constexpr uint64_t nothing = 0;
    __device__ static uint64_t of(uint64_t a, uint64_t b) { return a + b; }
};

struct Largest {
    static constexpr uint64_t nothing = 0;
    __device__ static uint64_t of(uint64_t a, uint64_t b) { return a > b ? a : b; }
};

template <class Op>
__device__ __forceinline__ uint64_t reduce_warp(uint64_t x) {
#pragma unroll
    for (uint32_t distance = WARP / 2; distance > 0; distance /= 2)
        x = Op::of(x, __shfl_xor_sync(ALL_LANES, x, distance));
    return x;
}

// The reduction of all threads' `x`, in all threads.
template <class Op>
__device__ __forceinline__ uint64_t reduce_block(uint64_t x, BlockScratch &scratch) {
    x = reduce_warp<Op>(x);
    __syncthreads();
    if (lane_id() == 0) scratch.of_warp[warp_id()] = x;
    __syncthreads();
    return reduce_warp<Op>(lane_id() < num_warps() ? scratch.of_warp[lane_id()] : Op::nothing);
}

// Sum of `x` over this lane and those before it.
__device__ __forceinline__ uint64_t sum_to_lane(uint64_t x) {
#pragma unroll
    for (uint32_t distance = 1; distance < WARP; distance *= 2) {
        const uint64_t other = __shfl_up_sync(ALL_LANES, x, distance);
        if (lane_id() >= distance) x += other;
    }
    return x;
}

// Sum of `x` over the threads before this one.
__device__ __forceinline__ uint64_t sum_before(uint64_t x, BlockScratch &scratch) {
    const uint64_t within = sum_to_lane(x);
    __syncthreads();
    if (lane_id() == WARP - 1) scratch.of_warp[warp_id()] = within;
    __syncthreads();
    const bool earlier = lane_id() < warp_id();
    return reduce_warp<Add>(earlier ? scratch.of_warp[lane_id()] : 0) + within - x;
}

}  // namespace pageloom
