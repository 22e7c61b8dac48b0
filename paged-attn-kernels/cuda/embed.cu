// Rows of a table by token ids: out[i] = table[ids[i]] * scale.
//
// table: [num_ids, width], out: [num_rows, width], strided rows; ids: [num_rows]. An id that is not
// below num_ids gives a row of NaN: launchers refuse those they see, and nothing is read for the rest.
#include "elementwise.cuh"
#include "pieces.cuh"

namespace pageloom {

template <class T, bool VECTOR> struct Embed {
    using Part = Piece<T, VECTOR>;
    static constexpr int N = Part::N;
    struct Loaded {
        float x[N];
    };
    const EmbedParams &p;

    static __device__ __forceinline__ bool can_use_vectors(const EmbedParams &p) {
        const bool table = p.table_dtype == Dtype::f32 ? aligned<float>(p.table) : aligned<__half>(p.table);
        return table && aligned<T>(p.out);
    }

    __device__ __forceinline__ Loaded load(uint32_t row, uint32_t piece) const {
        Loaded loaded;
        const uint32_t id = __ldg(p.ids + row);
        if (id < p.num_ids) {
            load_weights(p.table.data, int64_t(id) * p.table.stride + piece * N, p.table_dtype, loaded.x);
        } else {
#pragma unroll
            for (int i = 0; i < N; i++) loaded.x[i] = __int_as_float(0x7fc00000);
        }
        return loaded;
    }

    __device__ __forceinline__ void store(uint32_t row, uint32_t piece, const Loaded &loaded) const {
        float x[N];
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = loaded.x[i] * p.scale;
        Part::of(x).store(row_of<T>(p.out, row) + piece * N);
    }
};

}  // namespace pageloom

extern "C" __global__ void __launch_bounds__(pageloom::ELEMENTWISE_THREADS)
    embed(const __grid_constant__ pageloom::EmbedParams p) {
    pageloom::for_each_piece_of<pageloom::Embed>(p);
}
