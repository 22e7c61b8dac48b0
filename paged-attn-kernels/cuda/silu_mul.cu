// The gated activation of LLaMA: out = silu(x) * up, silu(x) = x / (1 + exp(-x)).
//
// x, up, out: [num_rows, width], strided rows; out may be x or up. Source: Shazeer 2020.
#include "activation.cuh"

namespace pageloom {

struct Silu {
    // Fast functions are right to a few ulp here, and the plain ones would make the kernel wait for
    // arithmetic instead of memory.
    static __device__ __forceinline__ float of(float x, Activation) { return __fdividef(x, 1.0f + __expf(-x)); }
};

}  // namespace pageloom

extern "C" __global__ void __launch_bounds__(pageloom::ELEMENTWISE_THREADS)
    silu_mul(const __grid_constant__ pageloom::ActivationParams p) {
    pageloom::for_each_piece_of<pageloom::Activate<pageloom::Silu>::Op>(p);
}
