// Parameters of the operations between linear layers. `src/cuda/elementwise/params.rs` has the same
// structs: keep both alike.
#pragma once

#include "types.cuh"

namespace pageloom {

// Threads of a block of every elementwise kernel but the norms.
constexpr int ELEMENTWISE_THREADS = 256;

// Of rms_norm and layer_norm. A row of the norm is one head of one token; heads are side by side.
struct NormParams {
    RowsView x;          // [num_tokens, num_heads, width]
    RowsView residual;   // as x; null: none. Becomes residual + x, and that is normed
    RowsView out;        // as x, which it may be
    const void *weight;  // [width]; null: ones
    const void *bias;    // [width]; null: zeros
    uint32_t num_tokens;
    uint32_t num_heads;
    uint32_t width;
    float eps;
    Dtype dtype;         // of x, residual and out
    Dtype weight_dtype;  // of weight and bias
    uint32_t group;      // threads of a row: 1, 2, 4, .. 32, or a multiple of 32 that is the CTA
    uint32_t reserved;
};

// Angles of rotary position embedding.
struct RotaryView {
    const uint32_t *positions;  // [num_tokens]
    const float *cos;           // [max_position, rotary_dim / 2]
    const float *sin;           // as cos
    uint32_t max_position;
    uint32_t rotary_dim;        // elements of a head that are rotated: its first ones
    uint32_t interleaved;       // 0: element i pairs with i + rotary_dim / 2. 1: 2 i with 2 i + 1
    uint32_t reserved;
};

// Of rope.
struct RopeParams {
    RowsView q;  // [num_tokens, num_q_heads, head_dim]
    RowsView k;  // [num_tokens, num_k_heads, head_dim]
    RotaryView rotary;
    uint32_t num_tokens;
    uint32_t num_q_heads;
    uint32_t num_k_heads;
    uint32_t head_dim;
    Dtype dtype;
    uint32_t reserved;
};

enum class Activation : uint32_t { silu = 0, gelu_erf = 1, gelu_tanh = 2, relu = 3, relu_squared = 4 };

// Of silu_mul, gelu and relu.
struct ActivationParams {
    RowsView x;    // [num_rows, width]
    RowsView up;   // as x: what is multiplied by the activation; null: nothing
    RowsView out;  // as x, which it may be, or up
    uint32_t num_rows;
    uint32_t width;
    Dtype dtype;
    Activation activation;
};

// Of embed.
struct EmbedParams {
    RowsView table;       // [num_ids, width]
    RowsView out;         // [num_rows, width]
    const uint32_t *ids;  // [num_rows]
    uint32_t num_rows;
    uint32_t width;
    uint32_t num_ids;
    float scale;          // what the table's numbers are multiplied by
    Dtype dtype;          // of out
    Dtype table_dtype;
};

// Of add_bias.
struct AddBiasParams {
    RowsView x;         // [num_rows, width]
    RowsView residual;  // as x; null: none
    RowsView out;       // as x, which it may be, or residual
    const void *bias;   // [width]; null: none
    uint32_t num_rows;
    uint32_t width;
    Dtype dtype;
    Dtype bias_dtype;
};

}  // namespace pageloom
