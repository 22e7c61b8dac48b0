// Angles of rotary position embedding.
#pragma once

#include "elementwise.cuh"
#include "pieces.cuh"

namespace pageloom {

// Where a position's cosines and sines are. A position past the table has none: its angles are NaN, as
// what is rotated by them becomes; launchers refuse those they see.
struct Angles {
    const float *cos;  // null: past the table
    const float *sin;

    static __device__ __forceinline__ Angles of(const RotaryView &rotary, uint32_t token) {
        const uint32_t position = __ldg(rotary.positions + token);
        if (position >= rotary.max_position) return {nullptr, nullptr};
        const int64_t row = int64_t(position) * (rotary.rotary_dim / 2);
        return {rotary.cos + row, rotary.sin + row};
    }

    // Whether `load` may read 4 at once, at multiples of 4.
    static __device__ __forceinline__ bool aligned_tables(const RotaryView &rotary) {
        return aligned(rotary.cos) && aligned(rotary.sin) && rotary.rotary_dim % 8 == 0;
    }

    // Those of pairs pair .. pair + N. Where N is not 1, tables are aligned and `pair` is a multiple of 4.
    template <int N> __device__ __forceinline__ void load(uint32_t pair, float (&c)[N], float (&s)[N]) const {
        if (cos == nullptr) {
#pragma unroll
            for (int i = 0; i < N; i++) c[i] = s[i] = __int_as_float(0x7fc00000);
            return;
        }
        if constexpr (N == 1) {
            c[0] = __ldg(cos + pair);
            s[0] = __ldg(sin + pair);
        } else {
            load_weights(cos + pair, 0, Dtype::f32, c);
            load_weights(sin + pair, 0, Dtype::f32, s);
        }
    }
};

// Turns the pair (a, b), its products rounded as they are where each is an instruction: the same bits
// as the CPU's.
__device__ __forceinline__ void turn(float &a, float &b, float cos, float sin) {
    const float first = __fsub_rn(__fmul_rn(a, cos), __fmul_rn(b, sin));
    b = __fadd_rn(__fmul_rn(b, cos), __fmul_rn(a, sin));
    a = first;
}

}  // namespace pageloom
