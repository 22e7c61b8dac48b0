// The Gaussian error linear unit, exact or in its tanh form, and gated: out = gelu(x) [* up].
//
// x, up, out: [num_rows, width], strided rows; out may be x or up. Source: Hendrycks and Gimpel 2016.
#include "activation.cuh"

namespace pageloom {

struct Gelu {
    static __device__ __forceinline__ float of(float x, Activation which) {
        if (which == Activation::gelu_tanh) {
            // (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u)), which keeps its digits where tanh is near -1.
            const float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
            return __fdividef(x, 1.0f + __expf(-2.0f * u));
        }
        // 1 + erf(z) = erfc(-z): the same for erf near -1.
        return 0.5f * x * erfcf(-0.7071067811865476f * x);
    }
};

}  // namespace pageloom

extern "C" __global__ void __launch_bounds__(pageloom::ELEMENTWISE_THREADS)
    gelu(const __grid_constant__ pageloom::ActivationParams p) {
    pageloom::for_each_piece_of<pageloom::Activate<pageloom::Gelu>::Op>(p);
}
