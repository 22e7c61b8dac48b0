// Layer norm of each head of each row: out = weight * (x - mean(x)) / sqrt(variance(x) + eps) [+ bias].
//
// x, residual, out: [num_tokens, num_heads, width], strided tokens; weight, bias: [width]. With a
// residual: residual += x, written back, and that is normed. Source: Ba et al. 2016.
#include "norm.cuh"

extern "C" __global__ void __launch_bounds__(pageloom::NORM_MAX_THREADS)
    layer_norm(const __grid_constant__ pageloom::NormParams p) {
    pageloom::norm<true>(p);
}
