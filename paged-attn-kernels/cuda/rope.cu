// Rotary position embedding of query and key heads in place.
//
// q: [num_tokens, num_q_heads, head_dim], k: [num_tokens, num_k_heads, head_dim], strided tokens,
// positions: [num_tokens]; cos, sin: [max_position, rotary_dim / 2]. The first rotary_dim elements of a
// head turn; element i pairs with i + rotary_dim / 2, or 2 i with 2 i + 1. Source: Su et al. 2021.
#include "rotary.cuh"

namespace pageloom {

// A piece is N pairs of one head, in two runs of N elements.
template <class T, bool VECTOR> struct Rope {
    using Part = Piece<T, VECTOR>;
    static constexpr int N = Part::N;
    struct Loaded {
        Part low, high;
        float cos[N], sin[N];
    };
    const RopeParams &p;
    uint32_t pieces_per_head;

    static __device__ __forceinline__ bool can_use_vectors(const RopeParams &p) {
        return aligned<T>(p.q) && aligned<T>(p.k) && p.head_dim % N == 0 && p.rotary.rotary_dim % (2 * N) == 0 &&
               Angles::aligned_tables(p.rotary);
    }

    // Starts of the two runs.
    __device__ __forceinline__ void find(uint32_t row, uint32_t piece, T *&low, T *&high) const {
        uint32_t head = piece / pieces_per_head;
        const uint32_t pair = piece % pieces_per_head * N;
        T *start = row_of<T>(p.q, row);
        if (head >= p.num_q_heads) {
            head -= p.num_q_heads;
            start = row_of<T>(p.k, row);
        }
        start += head * p.head_dim;
        low = start + (p.rotary.interleaved ? 2 * pair : pair);
        high = p.rotary.interleaved ? low + N : low + p.rotary.rotary_dim / 2;
    }

    __device__ __forceinline__ Loaded load(uint32_t row, uint32_t piece) const {
        Loaded loaded;
        T *low, *high;
        find(row, piece, low, high);
        loaded.low = Part::load(low);
        loaded.high = Part::load(high);
        Angles::of(p.rotary, row).load(piece % pieces_per_head * N, loaded.cos, loaded.sin);
        return loaded;
    }

    __device__ __forceinline__ void store(uint32_t row, uint32_t piece, const Loaded &loaded) const {
        float a[N], b[N];
        loaded.low.get(a);
        loaded.high.get(b);
        if (N > 1 && p.rotary.interleaved) {
#pragma unroll
            for (int i = 0; i < N / 2; i++) {
                turn(a[2 * i], a[2 * i + 1], loaded.cos[i], loaded.sin[i]);
                turn(b[2 * i], b[2 * i + 1], loaded.cos[N / 2 + i], loaded.sin[N / 2 + i]);
            }
        } else {
#pragma unroll
            for (int i = 0; i < N; i++) turn(a[i], b[i], loaded.cos[i], loaded.sin[i]);
        }
        T *low, *high;
        find(row, piece, low, high);
        Part::of(a).store(low);
        Part::of(b).store(high);
    }
};

template <class T, bool VECTOR> __device__ __forceinline__ void rope_rows(const RopeParams &p) {
    const uint32_t pieces_per_head = p.rotary.rotary_dim / 2 / Piece<T, VECTOR>::N;
    const Rope<T, VECTOR> op{p, pieces_per_head};
    for_each_piece<1>(op, p.num_tokens, (p.num_q_heads + p.num_k_heads) * pieces_per_head);
}

template <class T> __device__ __forceinline__ void rope_of(const RopeParams &p) {
    if (Rope<T, true>::can_use_vectors(p)) {
        rope_rows<T, true>(p);
    } else {
        rope_rows<T, false>(p);
    }
}

}  // namespace pageloom

extern "C" __global__ void __launch_bounds__(pageloom::ELEMENTWISE_THREADS)
    rope(const __grid_constant__ pageloom::RopeParams p) {
    using namespace pageloom;
    switch (p.dtype) {
        case Dtype::bf16: rope_of<__nv_bfloat16>(p); break;
        case Dtype::f16: rope_of<__half>(p); break;
        default: rope_of<float>(p); break;
    }
}
