// Attention of many query rows of a sequence over its cached keys: chunks of prefill.
//
//   q, out: [num_tokens, num_heads, head_dim], bf16 or f16; as the pages where these are bf16 or f16
//   kv:     pages of block_size 8 .. 128 (a power of two), see KvView
//   grid:   any; CTA i computes the items i, i + gridDim.x, ...   block: 128 threads
//   dynamic shared memory: PrefillShape::SHARED_BYTES
//
// A CTA's four warps share 64 keys at a time (32 where memory is short) and have 32 packed rows each (16
// for 256 dimensions). Products are mma.sync with f32 sums; weights are rounded to bf16 (f16 over f16
// pages) for the second one. int8 and fp8 pages are widened to bf16, which is exact; their scales
// multiply scores and weights in f32.
//
// variants: HEAD_DIM=64,80,96,128,256 KV=bf16,f16,int8,fp8

#include "prefill_keys.cuh"
#include "prefill_rows.cuh"
#include "prefill_shape.cuh"
#include "prefill_tile.cuh"

namespace pageloom {

using S = PrefillShape<HEAD_DIM, KvType::KV>;

// Which of a tile's keys a warp has to do with.
struct WarpKeys {
    bool any;      // some row sees some key
    bool partial;  // some row does not see some key
};

__device__ __forceinline__ WarpKeys warp_keys(uint32_t first_key) {
    const uint32_t num_rows = current_item<S>().item.num_packed;
    const uint32_t first = thread_index() / 32 * S::WARP_ROWS;
    const KeyRange *rows = in_shared<KeyRange>(S::ROW_KEYS);
    const KeyRange low = rows[first], high = rows[min(first + S::WARP_ROWS, num_rows) - 1];
    // Both ends of the rows' ranges ascend.
    return {first < num_rows && first_key < high.end && first_key + S::KEYS > low.begin,
            first_key < high.begin || first_key + S::KEYS > low.end};
}

// From a tile's products to its part in the sums.
__device__ __forceinline__ void add_tile(const AttendParams &p, PrefillSums<S> &sums, PrefillScores<S> &scores,
                                         uint32_t tile, bool partial, uint32_t base) {
    if constexpr (S::SCALED) scale_columns(scores, KeyLoader<S>::scales(tile));
    float scale = p.scale_log2;
    if (p.soft_cap > 0.0f) {
        cap_scores(scores, scale, p.soft_cap);
        scale = 1.0f;
    }
    if (partial) {
        const uint32_t thread = thread_index(), lane = thread % 32, row = thread / 32 * S::WARP_ROWS + lane / 4;
        mask_scores(scores, in_shared<KeyRange>(S::ROW_KEYS) + row, tile * S::KEYS + lane % 4 * 2);
    }
    weigh_scores(sums, scores, scale);
    add_values(sums, scores, base, KeyLoader<S>::scales(tile) + S::KEYS);
}

// Makes the tile's values, and for widened pages its keys, those in shared memory. Two barriers a tile
// are all there is: each buffer is written again only past the one behind its last reader.
//
//   bf16, f16:   | copy V | scores       | copy next K | softmax, sum |
//   int8, fp8:   | widen K, V; copy next raw | scores, softmax, sum   |
struct Pipeline {
    KeyLoader<S> loader;
    uint32_t base;  // of shared memory

    // `first`: the first tile.
    __device__ __forceinline__ void start(uint32_t first) {
        loader.copy_block(first);
        loader.copy_block(first + 1);
        copy_async_commit();
        copy_async_wait<0>();
        loader.place_octets(first);
        loader.place_octets(first + 1);
        __syncthreads();
        loader.copy_block(first + 2);
        fetch(first);
    }

    // One past the last tile.
    static __device__ __forceinline__ uint32_t end() { return (current_item<S>().keys.end + S::KEYS - 1) / S::KEYS; }

    // Starts copies of what comes before everything else of `tile`.
    __device__ __forceinline__ void fetch(uint32_t tile) {
        loader.copy(tile, loader.p.kv.k, base + (S::SCALED ? S::RAW_K : S::K));
        if constexpr (S::SCALED) {
            loader.copy(tile, loader.p.kv.v, base + S::RAW_V);
            loader.copy_scales(tile);
        }
        copy_async_commit();
    }

    // Until the tile's keys can be multiplied.
    __device__ __forceinline__ void before_scores(uint32_t tile) {
        copy_async_wait<0>();
        __syncthreads();
        if constexpr (S::SCALED) {
            loader.widen_tile(S::RAW_K, S::K);
            loader.widen_tile(S::RAW_V, S::V);
            if (tile + 1 < end()) fetch(tile + 1);
            __syncthreads();
        } else {
            loader.copy(tile, loader.p.kv.v, base + S::V);
            copy_async_commit();
        }
    }

    // Until its values can be.
    __device__ __forceinline__ void before_values(uint32_t tile) {
        if constexpr (!S::SCALED) {
            copy_async_wait<0>();
            __syncthreads();
            if (tile + 1 < end()) fetch(tile + 1);
        }
        loader.place_octets(tile + 2);
        loader.copy_block(tile + 3);
        copy_async_commit();
    }
};

__device__ __forceinline__ void attend_item(const AttendParams &p, uint32_t index) {
    PrefillItem &current = current_item<S>();
    if (threadIdx.x == 0) {
        current.item = p.items[index];
        current.index = index;
    }
    __syncthreads();
    place_rows<S>(p, current.item);
    __syncthreads();
    const KeyRange *rows = in_shared<KeyRange>(S::ROW_KEYS);
    if (threadIdx.x == 0) current.keys = {rows[0].begin, rows[current.item.num_packed - 1].end};
    load_queries<S>(p, current.item.num_packed);
    __syncthreads();
    const uint32_t first = current.keys.begin / S::KEYS;
    Pipeline pipeline = {{p}, shared_address(prefill_shared)};
    pipeline.start(first);
    PrefillSums<S> sums;
    sums.clear();
#pragma unroll 1
    for (uint32_t tile = first; tile < Pipeline::end(); ++tile) {
        pipeline.before_scores(tile);
        const WarpKeys wanted = warp_keys(tile * S::KEYS);
        PrefillScores<S> scores;
        if (wanted.any) score_keys(scores, pipeline.base);
        pipeline.before_values(tile);
        if (wanted.any) add_tile(p, sums, scores, tile, wanted.partial, pipeline.base);
    }
    copy_async_wait<0>();
    normalise(sums);
    if (current.item.partial == NO_PARTIAL) {
        store_rows(p, current.item.num_packed, sums);
    } else {
        store_partials(p, current.item, p.soft_cap > 0.0f ? 1.0f : p.scale_log2, sums);
    }
}

}  // namespace pageloom

extern "C" __global__ void __launch_bounds__(pageloom::PREFILL_THREADS, pageloom::S::CTAS_PER_SM)
    attend_prefill(const __grid_constant__ pageloom::AttendParams p) {
    asm("// dynamic shared: %0" ::"n"(pageloom::S::SHARED_BYTES));
    for (uint32_t i = blockIdx.x; i < *p.num_items; i = pageloom::current_item<pageloom::S>().index + gridDim.x) {
        // The item goes where the last one is read.
        __syncthreads();
        pageloom::attend_item(p, i);
    }
}
