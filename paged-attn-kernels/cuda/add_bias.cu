// Adds a bias to each row, and a residual: out = x [+ bias] [+ residual].
//
// x, residual, out: [num_rows, width], strided rows; out may be x or residual. bias: [width].
#include "elementwise.cuh"
#include "pieces.cuh"

namespace pageloom {

template <class T, bool VECTOR> struct AddBias {
    using Part = Piece<T, VECTOR>;
    static constexpr int N = Part::N;
    struct Loaded {
        Part x, residual;
    };
    const AddBiasParams &p;

    static __device__ __forceinline__ bool can_use_vectors(const AddBiasParams &p) {
        return aligned<T>(p.x) && aligned<T>(p.residual) && aligned<T>(p.out) && aligned(p.bias);
    }

    __device__ __forceinline__ Loaded load(uint32_t row, uint32_t piece) const {
        Loaded loaded;
        loaded.x = Part::load(row_of<T>(p.x, row) + piece * N);
        if (p.residual.data != nullptr) loaded.residual = Part::load(row_of<T>(p.residual, row) + piece * N);
        return loaded;
    }

    __device__ __forceinline__ void store(uint32_t row, uint32_t piece, const Loaded &loaded) const {
        float x[N], y[N];
        loaded.x.get(x);
        if (p.bias != nullptr) {
            load_weights(p.bias, int64_t(piece) * N, p.bias_dtype, y);
#pragma unroll
            for (int i = 0; i < N; i++) x[i] += y[i];
        }
        if (p.residual.data != nullptr) {
            loaded.residual.get(y);
#pragma unroll
            for (int i = 0; i < N; i++) x[i] += y[i];
        }
        Part::of(x).store(row_of<T>(p.out, row) + piece * N);
    }
};

}  // namespace pageloom

extern "C" __global__ void __launch_bounds__(pageloom::ELEMENTWISE_THREADS)
    add_bias(const __grid_constant__ pageloom::AddBiasParams p) {
    pageloom::for_each_piece_of<pageloom::AddBias>(p);
}
