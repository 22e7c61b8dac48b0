// Types that kernels and launchers share. `src/cuda/params.rs` has the same structs: keep both alike.
#pragma once

#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace pageloom {

// Number format of activations.
enum class Dtype : uint32_t { f32 = 0, bf16 = 1, f16 = 2 };

// Number format of cached keys and values.
enum class KvType : uint32_t { f32 = 0, bf16 = 1, f16 = 2, int8 = 3, fp8 = 4 };

// One layer of a paged cache.
//
//   a block:  | K [kv_head][block_size][head_dim] | V, as K | K scales [kv_head][block_size] | V scales |
//
// Pointers are to block 0 of the layer; strides count elements of what they point to. The last
// dimension is contiguous. Scales exist in int8 and fp8 caches only.
struct KvView {
    void *k;
    void *v;
    float *k_scales;
    float *v_scales;
    int64_t block_stride;        // elements from one block to the next, of keys and of values
    int64_t scale_block_stride;  // floats from one block's scales to the next's
    uint32_t head_stride;        // elements from one key-value head to the next within a block
    uint32_t token_stride;       // elements from one token to the next within a head
    uint32_t scale_head_stride;  // floats from one head's scales to the next's; tokens are adjacent
    uint32_t block_shift;        // a block holds 1 << block_shift tokens
};

// Rows of activations: row i starts `i * stride` elements after `data`.
struct RowsView {
    void *data;
    int64_t stride;
};

// A piece of attention that one CTA computes: packed rows of one sequence and key-value head, over a
// range of its keys.
//
// The query rows of a sequence that share a key-value head are numbered token by token: packed row r
// is head `kv_head * group + r % group` of token `r / group`. The sequence's token t has the row
// `first_row + t` in q and out, and the position `first_position + t`; it sees the keys from
// `max(0, position + 1 - window)` up to and including its position.
struct AttendItem {
    uint32_t first_row;       // of the sequence, in q and out
    uint32_t first_position;  // of that row's token
    uint32_t first_packed;    // first packed row of this item
    uint32_t num_packed;      // packed rows of this item
    uint32_t kv_head;
    uint32_t table_offset;    // of the sequence's block table in `block_tables`
    uint32_t kv_begin;        // first key of the range
    uint32_t kv_end;          // one past its last
    uint32_t partial;         // NO_PARTIAL: the result goes to out. Else where the item's partial
                              // results start: packed row i of the item has number `partial + i`.
};

constexpr uint32_t NO_PARTIAL = 0xffffffffu;

// Sums the partial results of `num_splits` items with the same packed rows.
struct CombineItem {
    uint32_t first_row;
    uint32_t first_packed;
    uint32_t num_packed;
    uint32_t kv_head;
    uint32_t partial;     // number of the first split's first row; the next split's are num_packed later
    uint32_t num_splits;
};

// Of attend_decode, attend_prefill and attend_f32.
struct AttendParams {
    RowsView q;    // [num_tokens, num_heads, head_dim]
    RowsView out;  // as q
    KvView kv;
    const uint32_t *block_tables;
    const AttendItem *items;
    const uint32_t *num_items;  // on the device, so that a captured launch can be replayed
    float *partial_out;         // [partials, head_dim], each divided by its own sum
    float *partial_lse;         // [partials], base-2 logarithm of the sum of 2^score; -inf if it saw no key
    uint32_t group;             // query heads of a key-value head
    Dtype dtype;                // of q and out
    KvType kv_type;             // for kernels that are not specialised for it
    uint32_t window;            // keys a row sees, its own included; 0: all
    float scale_log2;           // what scores are multiplied by, times log2(e)
    float soft_cap;             // cap * tanh(score / cap) in natural units; 0: none
};

// Of attend_combine.
struct CombineParams {
    RowsView out;
    const CombineItem *items;
    const uint32_t *num_items;
    const float *partial_out;
    const float *partial_lse;
    uint32_t group;
    uint32_t head_dim;
    Dtype dtype;
};

}  // namespace pageloom
