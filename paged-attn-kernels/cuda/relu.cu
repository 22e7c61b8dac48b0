// The rectifier, and its square: out = max(x, 0) [squared] [* up].
//
// x, up, out: [num_rows, width], strided rows; out may be x or up.
#include "activation.cuh"

namespace pageloom {

struct Relu {
    static __device__ __forceinline__ float of(float x, Activation which) {
        // Not max(x, 0), which is 0 for a NaN.
        const float y = x < 0.0f ? 0.0f : x;
        return which == Activation::relu_squared ? y * y : y;
    }
};

}  // namespace pageloom

extern "C" __global__ void __launch_bounds__(pageloom::ELEMENTWISE_THREADS)
    relu(const __grid_constant__ pageloom::ActivationParams p) {
    pageloom::for_each_piece_of<pageloom::Activate<pageloom::Relu>::Op>(p);
}
