// Parameters of the operations on blocks. `src/cuda/blocks/params.rs` has the same structs: keep both
// alike.
#pragma once

#include "elementwise.cuh"

namespace pageloom {

// A slot that is none: the row is padding.
constexpr uint32_t NO_SLOT = 0xffffffffu;

// Of write_kv.
struct WriteKvParams {
    RowsView k;              // [num_tokens, num_kv_heads, head_dim]
    RowsView v;              // as k
    RowsView q;              // [num_tokens, num_heads, head_dim], rotated in place; num_heads 0: none
    KvView kv;
    const uint32_t *slots;   // [num_tokens]: block * block_size + offset, or NO_SLOT
    RotaryView rotary;       // positions null: keys are stored as they come
    uint32_t num_tokens;
    uint32_t num_heads;
    uint32_t num_kv_heads;
    uint32_t head_dim;       // a multiple of 8, up to 256
    uint32_t num_slots;      // rows whose slot is not below are skipped
    uint32_t hadamard_len;   // largest power of two that divides head_dim
    float hadamard_norm;     // 1 / sqrt(hadamard_len)
    Dtype dtype;             // of k, v and q
    KvType kv_type;
    uint32_t lanes;          // of a row: the power of two that is head_dim / 8 or next above it
};

// All layers of a paged cache.
struct SlabView {
    void *data;            // block 0 of layer 0, aligned to 16 bytes
    int64_t layer_stride;  // bytes, a multiple of 16
};

struct BlockPair {
    uint32_t from;
    uint32_t to;
};

// Of copy_blocks and swap_blocks.
struct CopyBlocksParams {
    SlabView from;
    SlabView to;
    const BlockPair *pairs;  // [num_pairs]
    uint32_t num_pairs;
    uint32_t num_layers;
    uint32_t block_bytes;    // of a layer: a multiple of 16
    uint32_t segment_bytes;  // that a CTA copies at once: a multiple of 16
};

}  // namespace pageloom
