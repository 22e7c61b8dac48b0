// Root-mean-square norm of each head of each row: out = weight * x / sqrt(mean(x^2) + eps) [+ bias].
//
// x, residual, out: [num_tokens, num_heads, width], strided tokens; weight, bias: [width]. With a
// residual: residual += x, written back, and that is normed. Source: Zhang and Sennrich 2019.
#include "norm.cuh"

extern "C" __global__ void __launch_bounds__(pageloom::NORM_MAX_THREADS)
    rms_norm(const __grid_constant__ pageloom::NormParams p) {
    pageloom::norm<false>(p);
}
