// Products on tensor cores (mma.sync m16n8k16, ldmatrix; sm_80), and the layouts they want.
//
// With lane = 4 * g + c, a lane holds of the matrices of D[16][8] += A[16][16] * B[16][8]:
//
//   a[0]: A[g][2c, 2c+1]    a[1]: A[g+8][2c, 2c+1]    a[2]: A[g][2c+8, 2c+9]    a[3]: A[g+8][2c+8, 2c+9]
//   b0:   B[2c, 2c+1][g]    b1:   B[2c+8, 2c+9][g]
//   d[0, 1]: D[g][2c, 2c+1]                           d[2, 3]: D[g+8][2c, 2c+1]
//
// The lower half of a register is the element of the lower index.
#pragma once

#include "types.cuh"

namespace pageloom {

// d += a * b, in f32. T: of a and b, bf16 or f16.
template <Dtype T>
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    if constexpr (T == Dtype::f16) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    } else {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
}

// Loads four 8x8 matrices of 16-bit elements from shared memory. Lanes 8i to 8i + 7 give the addresses
// of matrix i's rows, 16 bytes each; r[i] gets row g, columns 2c and 2c + 1.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row_address)
                 : "memory");
}

// As load_matrices, but r[i] gets rows 2c and 2c + 1 of column g.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], uint32_t row_address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row_address)
                 : "memory");
}

// Two numbers rounded to T, to nearest even; `low` in the lower half.
template <Dtype T>
__device__ __forceinline__ uint32_t pack_halves(float low, float high) {
    uint32_t r;
    if constexpr (T == Dtype::f16) {
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    } else {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    }
    return r;
}

// 2^x: relative error 2^-22, results below the normal numbers are 0, 2^-inf is 0.
__device__ __forceinline__ float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Where chunk `chunk` (16 bytes) of row `row` of a tile in shared memory lies, in bytes after the tile's
// start, which is a multiple of 128. A row has CHUNKS of them.
//
// Chunks are swapped within a row so that the same chunk of 8 rows that follow each other from a
// multiple of 8 on, which is what one matrix of load_matrices takes, is in 32 different banks. To step
// from chunk `a` to `a ^ b` for `b < SWIZZLED_CHUNKS<CHUNKS>`, xor the result with `16 * b`.
template <uint32_t CHUNKS>
constexpr uint32_t SWIZZLED_CHUNKS = CHUNKS % 8 == 0 ? 8 : CHUNKS % 4 == 0 ? 4 : CHUNKS % 2 == 0 ? 2 : 1;

template <uint32_t CHUNKS>
__device__ __forceinline__ uint32_t swizzled(uint32_t row, uint32_t chunk) {
    constexpr uint32_t WIDTH = SWIZZLED_CHUNKS<CHUNKS>;
    return (row * CHUNKS + (chunk ^ (row * WIDTH / 8 & (WIDTH - 1)))) * 16;
}

}  // namespace pageloom
