// The keys and values that a warp of attend_decode works on, on their way through shared memory.
//
// A stage holds 16 tokens: keys, values and, for 8-bit formats, the scales of both. Rows are as in the
// pages, their chunks of 16 bytes swapped so that what a warp reads at once is in different banks.
#pragma once

#include "async_copy.cuh"
#include "attention.cuh"
#include "kv_bytes.cuh"

namespace pageloom {

constexpr KvType TYPE = KvType::KV;
constexpr bool BYTES = TYPE == KvType::int8 || TYPE == KvType::fp8;
constexpr Dtype MMA = TYPE == KvType::f16 ? Dtype::f16 : Dtype::bf16;
constexpr uint32_t ELEMENT_BYTES = BYTES ? 1 : 2;

constexpr uint32_t MAX_ROWS = 16;
constexpr uint32_t NUM_WARPS = 4;
constexpr uint32_t WARP_TOKENS = 16;
constexpr uint32_t TILE_TOKENS = NUM_WARPS * WARP_TOKENS;

constexpr uint32_t CHUNKS = HEAD_DIM * ELEMENT_BYTES / 16;
// 8-bit values are read 32 columns at a time, so rows of 80 are padded; what becomes of the padding is not
// written.
constexpr uint32_t ROW_CHUNKS = BYTES ? (CHUNKS + 1) / 2 * 2 : CHUNKS;
constexpr uint32_t ROW_BYTES = ROW_CHUNKS * 16;
constexpr uint32_t PANEL_BYTES = WARP_TOKENS * ROW_BYTES;
constexpr uint32_t SCALE_BYTES = BYTES ? WARP_TOKENS * 4 : 0;
constexpr uint32_t STAGE_BYTES = 2 * PANEL_BYTES + 2 * SCALE_BYTES;

// As many as leave room for the CTAs that registers allow, in the 227 KiB of an SM of an H100 or H200: 100
// KiB on their way, of which 40 hide a latency of a microsecond at 132 SMs' 4.8 TB/s. One CTA fits in the
// 99 KiB of capabilities 8.6, 8.9 and 12.0, but for 16-bit pages of 256 dimensions.
constexpr uint32_t STAGES = HEAD_DIM == 256 ? 2 : BYTES ? (HEAD_DIM == 64 ? 4 : 3) : (HEAD_DIM == 128 ? 2 : 3);
constexpr uint32_t CTAS_PER_SM = BYTES ? (HEAD_DIM == 256 ? 2 : HEAD_DIM == 128 ? 3 : 4)
                                       : (HEAD_DIM == 256 ? 1 : HEAD_DIM >= 96 ? 2 : 3);

// Address of chunk `chunk` of a row whose chunk 0 is at `address`, or whose chunk 1 for chunk + 1, and so on.
template <uint32_t ROW>
__device__ __forceinline__ uint32_t step_chunks(uint32_t address, uint32_t chunk) {
    constexpr uint32_t SWAPPED = SWIZZLED_CHUNKS<ROW> - 1;
    return (address ^ ((chunk & SWAPPED) * 16)) + (chunk & ~SWAPPED) * 16;
}

// Bits of a chunk's number that are swapped by bits 0 and 1 of the row's in panels of 8-bit values: two
// chunks of rows 4i to 4i + 3 are in different banks.
constexpr uint32_t VALUE_SWAPPED = ROW_CHUNKS % 8 == 0 ? 6 : ROW_CHUNKS % 4 == 0 ? 2 : 0;

__device__ __forceinline__ uint32_t swizzled_value(uint32_t row, uint32_t chunk) {
    if constexpr (!BYTES) return swizzled<ROW_CHUNKS>(row, chunk);
    const uint32_t swap = (VALUE_SWAPPED == 6 ? row * 2 : row) & VALUE_SWAPPED;
    return row * ROW_BYTES + (chunk ^ swap) * 16;
}

// As step_chunks, for panels of 8-bit values.
__device__ __forceinline__ uint32_t step_value_chunks(uint32_t address, uint32_t chunk) {
    return (address ^ ((chunk & VALUE_SWAPPED) * 16)) + (chunk & ~VALUE_SWAPPED) * 16;
}

__device__ __forceinline__ uint32_t load_shared(uint32_t address) {
    uint32_t x;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(x) : "r"(address) : "memory");
    return x;
}

// First token of this warp's part of the first tile that holds keys from `begin` on.
__device__ __forceinline__ uint32_t first_tile(uint32_t begin) {
    const uint32_t token = begin / TILE_TOKENS * TILE_TOKENS + threadIdx.x / 32 * WARP_TOKENS;
    return token + WARP_TOKENS > begin ? token : token + TILE_TOKENS;
}

// Multiplies columns of scores by their tokens' scales and `factor`.
__device__ __forceinline__ void scale_tokens(float (&s)[2][4], uint32_t scales, float factor) {
    const uint32_t c = threadIdx.x % 4;
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
        const float x = __uint_as_float(load_shared(scales + 4 * (8 * (i / 2) + c + 4 * (i % 2))));
        s[i / 2][i % 2] *= x * factor;
        s[i / 2][2 + i % 2] *= x * factor;
    }
}

// The tiles of all items of this CTA, one after another, STAGES of them at a time. Every lane of the warp
// calls every function.
class Ring {
    const AttendParams &p;
    const uint32_t num_items;
    const uint32_t first;  // address of stage 0
    uint32_t stage;        // address of the current one
    // What is loaded next: tokens of an item, and the blocks that hold the first and the last 8 of them.
    // Blocks are read a tile ahead.
    uint32_t item;
    uint32_t token, begin, end, kv_head;
    const uint32_t *table;
    uint32_t blocks[2];

   public:
    __device__ __forceinline__ Ring(const AttendParams &p_, uint32_t first_, uint32_t num_items_)
        : p(p_), num_items(num_items_), first(first_), stage(first_), item(blockIdx.x) {
        if (item < num_items) enter_item();
        find_tile();
    }

    // Starts to load all stages.
    __device__ __forceinline__ void fill() {
        for (uint32_t i = 0; i < STAGES; ++i) {
            load<false>();
            load<true>();
            find_tile_after();
        }
    }

    // Waits for the keys, then for the values of the current stage, in turn.
    __device__ __forceinline__ void wait() {
        copy_async_wait<2 * STAGES - 1>();
        __syncwarp();
    }

    // Addresses of what this lane reads first.
    __device__ __forceinline__ uint32_t keys() const {
        const uint32_t lane = threadIdx.x % 32, g = lane / 4;
        // 8-bit: row of this lane's token in the scores' order.
        if constexpr (BYTES) return stage + swizzled<ROW_CHUNKS>(g / 2 + g % 2 * 4, 0) + lane % 4 * 4;
        return stage + swizzled<ROW_CHUNKS>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
    }
    __device__ __forceinline__ uint32_t values() const {
        const uint32_t lane = threadIdx.x % 32, g = lane / 4;
        if constexpr (BYTES) return stage + PANEL_BYTES + swizzled_value(lane % 4, g / 4) + g % 4 * 4;
        return stage + PANEL_BYTES + swizzled<ROW_CHUNKS>(lane % 16, lane / 16);
    }
    __device__ __forceinline__ uint32_t key_scales() const { return stage + 2 * PANEL_BYTES; }
    __device__ __forceinline__ uint32_t value_scales() const { return stage + 2 * PANEL_BYTES + SCALE_BYTES; }

    // The current keys have been read: loads those of STAGES tiles later in their place.
    __device__ __forceinline__ void refill_keys() {
        __syncwarp();
        load<false>();
    }

    // The same for values, which ends the tile.
    __device__ __forceinline__ void refill_values() {
        __syncwarp();
        load<true>();
        find_tile_after();
    }

   private:
    __device__ __forceinline__ void enter_item() {
        const AttendItem &it = p.items[item];
        begin = it.kv_begin;
        end = it.kv_end;
        kv_head = it.kv_head;
        table = p.block_tables + it.table_offset;
        token = first_tile(begin);
    }

    __device__ __forceinline__ void find_tile() {
        while (item < num_items && token >= end) {
            item += gridDim.x;
            if (item < num_items) enter_item();
        }
        if (item >= num_items) return;
        // Only blocks that the item's keys are in have to be in the table.
        const uint32_t shift = p.kv.block_shift;
#pragma unroll
        for (uint32_t i = 0; i < 2; ++i) blocks[i] = table[min(max(token + 8 * i, begin), end - 1) >> shift];
    }

    // Ends a stage: what is loaded next goes to the one after it.
    __device__ __forceinline__ void find_tile_after() {
        stage = stage == first + (STAGES - 1) * STAGE_BYTES ? first : stage + STAGE_BYTES;
        if (item >= num_items) return;
        token += TILE_TOKENS;
        find_tile();
    }

    template <bool VALUES>
    __device__ __forceinline__ void load() {
        if (item < num_items) {
            // Nearly always.
            if (token >= begin && token + WARP_TOKENS <= end) {
                load_rows<VALUES, true>();
            } else {
                load_rows<VALUES, false>();
            }
            if constexpr (BYTES) load_scales<VALUES>();
        }
        copy_async_commit();
    }

    // WHOLE: all 16 tokens are the item's. Others are zeros.
    template <bool VALUES, bool WHOLE>
    __device__ __forceinline__ void load_rows() {
        const uint32_t to = stage + VALUES * PANEL_BYTES, lane = threadIdx.x % 32;
        const char *pages = static_cast<const char *>(VALUES ? p.kv.v : p.kv.k);
        const char *halves[2];
#pragma unroll
        for (uint32_t i = 0; i < 2; ++i) {
            halves[i] = pages + kv_offset(p.kv, blocks[i], kv_head, token + 8 * i) * ELEMENT_BYTES;
        }
        const uint32_t row_stride = p.kv.token_stride * ELEMENT_BYTES;
#pragma unroll
        for (uint32_t i = 0; i < WARP_TOKENS * CHUNKS; i += 32) {
            const uint32_t row = (i + lane) / CHUNKS, chunk = (i + lane) % CHUNKS;
            if (WARP_TOKENS * CHUNKS % 32 != 0 && row >= WARP_TOKENS) break;
            // Said in a way that is known at compile time where 32 lanes take whole rows.
            const bool upper = 32 % CHUNKS == 0 ? i >= 8 * CHUNKS : row >= 8;
            const char *from = (upper ? halves[1] : halves[0]) + row % 8 * row_stride + chunk * 16;
            const uint32_t at = to + (VALUES ? swizzled_value(row, chunk) : swizzled<ROW_CHUNKS>(row, chunk));
            if constexpr (WHOLE) {
                copy_async_16(at, from);
            } else {
                copy_async_16(at, from, token + row >= begin && token + row < end);
            }
        }
    }

    template <bool VALUES>
    __device__ __forceinline__ void load_scales() {
        const uint32_t row = threadIdx.x % 32;
        if (row >= WARP_TOKENS) return;
        const float *scales = VALUES ? p.kv.v_scales : p.kv.k_scales;
        const uint32_t block = row < 8 ? blocks[0] : blocks[1];
        const float *from = scales + scale_offset(p.kv, block, kv_head, token + row);
        const uint32_t to = (VALUES ? value_scales() : key_scales()) + row * 4;
        copy_async_4(to, from, token + row >= begin && token + row < end);
    }
};

}  // namespace pageloom
