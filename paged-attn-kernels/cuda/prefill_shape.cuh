// Sizes of attend_prefill's tiles, and what lies where in its shared memory.
#pragma once

#include "attention.cuh"
#include "mma.cuh"

namespace pageloom {

constexpr uint32_t PREFILL_THREADS = 128;
constexpr uint32_t PREFILL_WARPS = PREFILL_THREADS / 32;

// Where 8 keys that follow each other from a multiple of 8 on begin: every block holds such eights whole.
struct KeyOctet {
    int64_t bytes;   // from the pointer to keys (or values) to the first one's
    int64_t scales;  // floats from the pointer to scales
};

// `src/cuda/attention/prefill.rs` computes SHARED_BYTES too: keep both alike.
template <uint32_t DIM_, KvType TYPE>
struct PrefillShape {
    static constexpr uint32_t DIM = DIM_;
    static constexpr KvType KV_TYPE = TYPE;
    static constexpr bool SCALED = TYPE == KvType::int8 || TYPE == KvType::fp8;
    // What tensor cores multiply.
    static constexpr Dtype TILE_TYPE = TYPE == KvType::f16 ? Dtype::f16 : Dtype::bf16;

    // A warp has two tiles of 16 packed rows, so that each key it reads from shared memory is
    // multiplied twice, where the sums of as many dimensions fit in its registers.
    static constexpr uint32_t ROW_TILES = DIM <= 128 ? 2 : 1;
    static constexpr uint32_t WARP_ROWS = 16 * ROW_TILES;
    static constexpr uint32_t ROWS = PREFILL_WARPS * WARP_ROWS;
    // Keys of a step. What limits them: shared memory of sm_86 and sm_89 (99 KiB) for 256 dimensions,
    // registers for 128, which widening needs too.
    static constexpr uint32_t KEYS = DIM >= 128 && SCALED ? 32 : 64;
    static constexpr uint32_t OCTETS = KEYS / 8;
    static constexpr uint32_t KEY_TILES = KEYS / 8;
    static constexpr uint32_t DIM_TILES = DIM / 8;
    static constexpr uint32_t CTAS_PER_SM = 2;

    // Rows in shared memory: 16-byte chunks of 8 elements, swizzled.
    static constexpr uint32_t CHUNKS = DIM / 8;
    static constexpr uint32_t ROW_BYTES = DIM * 2;
    // Rows in the pages.
    static constexpr uint32_t PAGE_ELEMENT_BYTES = SCALED ? 1 : 2;
    static constexpr uint32_t PAGE_CHUNKS = DIM * PAGE_ELEMENT_BYTES / 16;
    // Lanes that copy a row together, 128 bytes in one instruction.
    static constexpr uint32_t LANES_PER_ROW = PAGE_CHUNKS <= 4 ? 4 : 8;
    static constexpr uint32_t ROWS_PER_PASS = PREFILL_THREADS / LANES_PER_ROW;
    static constexpr uint32_t PASSES = (KEYS + ROWS_PER_PASS - 1) / ROWS_PER_PASS;
    static constexpr uint32_t CHUNKS_PER_LANE = (PAGE_CHUNKS + LANES_PER_ROW - 1) / LANES_PER_ROW;
    // Bytes of keys (or values) as the pages hold them: each thread's own, to be widened by itself.
    static constexpr uint32_t RAW_BYTES = SCALED ? PASSES * CHUNKS_PER_LANE * PREFILL_THREADS * 16 : 0;

    static constexpr uint32_t TILE_BYTES = KEYS * ROW_BYTES;
    static constexpr uint32_t Q = 0;
    static constexpr uint32_t K = Q + ROWS * ROW_BYTES;
    static constexpr uint32_t V = K + TILE_BYTES;
    static constexpr uint32_t RAW_K = V + TILE_BYTES;
    static constexpr uint32_t RAW_V = RAW_K + RAW_BYTES;
    static constexpr uint32_t ROW_PLACES = RAW_V + RAW_BYTES;         // uint2 [ROWS]
    static constexpr uint32_t ROW_KEYS = ROW_PLACES + ROWS * 8;       // uint2 [ROWS]
    static constexpr uint32_t KEY_OCTETS = ROW_KEYS + ROWS * 8;       // KeyOctet [2][OCTETS]
    static constexpr uint32_t BLOCKS = KEY_OCTETS + 2 * OCTETS * 16;  // uint32_t [2][OCTETS]
    static constexpr uint32_t SCALES = BLOCKS + 2 * OCTETS * 4;       // float [2][keys', values'][KEYS]
    static constexpr uint32_t ITEM = SCALES + (SCALED ? 4 * KEYS * 4 : 0);
    static constexpr uint32_t SHARED_BYTES = ITEM + 48;
    static_assert(SHARED_BYTES <= 99 * 1024, "does not fit on sm_86");
    static_assert(KEYS % ROWS_PER_PASS == 0 && TILE_BYTES % 128 == 0, "tiles are copied in whole passes");
};

extern __shared__ __align__(128) uint8_t prefill_shared[];

template <class T>
__device__ __forceinline__ T *in_shared(uint32_t offset) {
    return reinterpret_cast<T *>(prefill_shared + offset);
}

// threadIdx.x, read anew: else what follows from it stays in registers over the whole loop, which are full.
__device__ __forceinline__ uint32_t thread_index() {
    uint32_t index;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
    return index;
}

__device__ __forceinline__ bool contains(KeyRange keys, uint32_t key) { return key - keys.begin < keys.end - keys.begin; }

// The item in progress. Read from shared memory wherever it is needed: registers are scarcer.
struct PrefillItem {
    AttendItem item;
    uint32_t index;  // in AttendParams::items
    KeyRange keys;  // that any of its rows sees
};
static_assert(sizeof(PrefillItem) == 48, "SHARED_BYTES counts on it");

template <class S>
__device__ __forceinline__ PrefillItem &current_item() {
    return *in_shared<PrefillItem>(S::ITEM);
}

}  // namespace pageloom
