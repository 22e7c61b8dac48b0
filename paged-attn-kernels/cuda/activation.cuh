// What the activations have in common: one pass over rows, gated or not.
#pragma once

#include "elementwise.cuh"
#include "pieces.cuh"

namespace pageloom {

// FUNCTION has `static float of(float x, Activation which)`.
template <class FUNCTION> struct Activate {
    template <class T, bool VECTOR> struct Op {
        using Part = Piece<T, VECTOR>;
        static constexpr int N = Part::N;
        struct Loaded {
            Part x, up;
        };
        const ActivationParams &p;

        static __device__ __forceinline__ bool can_use_vectors(const ActivationParams &p) {
            return aligned<T>(p.x) && aligned<T>(p.up) && aligned<T>(p.out);
        }

        __device__ __forceinline__ Loaded load(uint32_t row, uint32_t piece) const {
            Loaded loaded;
            loaded.x = Part::load(row_of<T>(p.x, row) + piece * N);
            if (p.up.data != nullptr) loaded.up = Part::load(row_of<T>(p.up, row) + piece * N);
            return loaded;
        }

        __device__ __forceinline__ void store(uint32_t row, uint32_t piece, const Loaded &loaded) const {
            float x[N], up[N];
            loaded.x.get(x);
#pragma unroll
            for (int i = 0; i < N; i++) x[i] = FUNCTION::of(x[i], p.activation);
            if (p.up.data != nullptr) {
                loaded.up.get(up);
#pragma unroll
                for (int i = 0; i < N; i++) x[i] *= up[i];
            }
            Part::of(x).store(row_of<T>(p.out, row) + piece * N);
        }
    };
};

}  // namespace pageloom
