// Rows in pieces: 16 bytes where pointers, strides and widths allow, else single elements.
#pragma once

#include "numbers.cuh"

namespace pageloom {

__device__ __forceinline__ float as_f32(float x) { return x; }
__device__ __forceinline__ float as_f32(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float as_f32(__half x) { return __half2float(x); }

template <class T> __device__ __forceinline__ T from_f32(float x);
template <> __device__ __forceinline__ float from_f32<float>(float x) { return x; }
template <> __device__ __forceinline__ __nv_bfloat16 from_f32<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }
template <> __device__ __forceinline__ __half from_f32<__half>(float x) { return __float2half_rn(x); }

// Two elements of 16 bits in a word, the first in its low half.
template <class T> __device__ __forceinline__ float2 unpack(uint32_t word);
template <> __device__ __forceinline__ float2 unpack<__nv_bfloat16>(uint32_t word) {
    return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}
template <> __device__ __forceinline__ float2 unpack<__half>(uint32_t word) {
    const __half low = __ushort_as_half(static_cast<unsigned short>(word));
    const __half high = __ushort_as_half(static_cast<unsigned short>(word >> 16));
    return make_float2(__half2float(low), __half2float(high));
}

// Rounds to nearest, ties to even.
template <class T> __device__ __forceinline__ uint32_t pack(float low, float high);
template <> __device__ __forceinline__ uint32_t pack<__nv_bfloat16>(float low, float high) {
    uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}
template <> __device__ __forceinline__ uint32_t pack<__half>(float low, float high) {
    uint32_t word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

// N elements of T that one thread holds as they are in memory.
template <class T, bool VECTOR> struct Piece;

// 16 bytes, aligned to as many.
template <class T> struct Piece<T, true> {
    static constexpr int N = 16 / sizeof(T);
    uint4 bits;

    static __device__ __forceinline__ Piece load(const T *at) { return {*reinterpret_cast<const uint4 *>(at)}; }
    __device__ __forceinline__ void store(T *at) const { *reinterpret_cast<uint4 *>(at) = bits; }

    __device__ __forceinline__ void get(float (&x)[N]) const {
        const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if constexpr (sizeof(T) == 4) {
                x[i] = __uint_as_float(words[i]);
            } else {
                const float2 two = unpack<T>(words[i]);
                x[2 * i] = two.x;
                x[2 * i + 1] = two.y;
            }
        }
    }

    static __device__ __forceinline__ Piece of(const float (&x)[N]) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if constexpr (sizeof(T) == 4) {
                words[i] = __float_as_uint(x[i]);
            } else {
                words[i] = pack<T>(x[2 * i], x[2 * i + 1]);
            }
        }
        return {make_uint4(words[0], words[1], words[2], words[3])};
    }
};

// One element.
template <class T> struct Piece<T, false> {
    static constexpr int N = 1;
    T element;

    static __device__ __forceinline__ Piece load(const T *at) { return {*at}; }
    __device__ __forceinline__ void store(T *at) const { *at = element; }
    __device__ __forceinline__ void get(float (&x)[1]) const { x[0] = as_f32(element); }
    static __device__ __forceinline__ Piece of(const float (&x)[1]) { return {from_f32<T>(x[0])}; }
};

// Elements i .. i + N of a vector of weights, whose start is aligned to 16 bytes if N is not 1, as i to N.
template <int N>
__device__ __forceinline__ void load_weights(const void *weights, int64_t i, Dtype dtype, float (&x)[N]) {
    if constexpr (N == 1) {
        x[0] = load_as_f32(weights, i, dtype);
    } else if (dtype == Dtype::f32) {
        const float4 *at = reinterpret_cast<const float4 *>(static_cast<const float *>(weights) + i);
#pragma unroll
        for (int j = 0; j < N / 4; j++) {
            const float4 four = __ldg(at + j);
            x[4 * j] = four.x;
            x[4 * j + 1] = four.y;
            x[4 * j + 2] = four.z;
            x[4 * j + 3] = four.w;
        }
    } else {
        const uint2 *at = reinterpret_cast<const uint2 *>(static_cast<const uint16_t *>(weights) + i);
#pragma unroll
        for (int j = 0; j < N / 4; j++) {
            const uint2 four = __ldg(at + j);
            const bool is_bf16 = dtype == Dtype::bf16;
            const float2 a = is_bf16 ? unpack<__nv_bfloat16>(four.x) : unpack<__half>(four.x);
            const float2 b = is_bf16 ? unpack<__nv_bfloat16>(four.y) : unpack<__half>(four.y);
            x[4 * j] = a.x;
            x[4 * j + 1] = a.y;
            x[4 * j + 2] = b.x;
            x[4 * j + 3] = b.y;
        }
    }
}

__device__ __forceinline__ bool aligned(const void *pointer) {
    return (reinterpret_cast<uintptr_t>(pointer) & 15) == 0;
}

// Whether every row starts at a multiple of 16 bytes. True of rows that are absent.
template <class T> __device__ __forceinline__ bool aligned(const RowsView &rows) {
    return rows.data == nullptr || (aligned(rows.data) && rows.stride * int64_t(sizeof(T)) % 16 == 0);
}

// Row `row` of `rows`.
template <class T> __device__ __forceinline__ T *row_of(const RowsView &rows, uint32_t row) {
    return static_cast<T *>(rows.data) + int64_t(row) * rows.stride;
}

// Shares out pieces 0 .. per_row of each row, in the order of memory, to the threads of the grid.
//
// Each thread loads UNROLL pieces before it stores the first, so that enough bytes are in flight.
// `op.load(row, piece)` returns what `op.store(row, piece, loaded)` needs. The grid may have any size up to 2^31 threads,
// as may be `num_rows` and `per_row`.
template <int UNROLL, class Op>
__device__ __forceinline__ void for_each_piece(const Op &op, uint32_t num_rows, uint32_t per_row) {
    const uint32_t thread = blockIdx.x * blockDim.x + threadIdx.x;
    const uint32_t num_threads = gridDim.x * blockDim.x;
    uint32_t row = thread / per_row, piece = thread % per_row;
    // Divisions here spare those in the loop.
    const uint32_t row_step = num_threads / per_row, piece_step = num_threads % per_row;
    while (row < num_rows) {
        typename Op::Loaded loaded[UNROLL];
        uint32_t rows[UNROLL], pieces[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            rows[u] = row;
            pieces[u] = piece;
            if (row < num_rows) {
                loaded[u] = op.load(row, piece);
                piece += piece_step;
                row += row_step;
                if (piece >= per_row) {
                    piece -= per_row;
                    row++;
                }
            }
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            if (rows[u] < num_rows) op.store(rows[u], pieces[u], loaded[u]);
        }
    }
}

// Runs `Op<T, VECTOR>` over all rows of `p`, where Op says whether pieces can be vectors.
template <template <class, bool> class Op, class T, class Params>
__device__ __forceinline__ void for_each_piece_of(const Params &p) {
    constexpr int N = Piece<T, true>::N;
    if (p.width % N == 0 && Op<T, true>::can_use_vectors(p)) {
        for_each_piece<2>(Op<T, true>{p}, p.num_rows, p.width / N);
    } else {
        for_each_piece<2>(Op<T, false>{p}, p.num_rows, p.width);
    }
}

// As above, for the type that `p.dtype` names.
template <template <class, bool> class Op, class Params>
__device__ __forceinline__ void for_each_piece_of(const Params &p) {
    switch (p.dtype) {
        case Dtype::bf16: for_each_piece_of<Op, __nv_bfloat16>(p); break;
        case Dtype::f16: for_each_piece_of<Op, __half>(p); break;
        default: for_each_piece_of<Op, float>(p); break;
    }
}

}  // namespace pageloom
