// Stores keys and values of new tokens in their slots of one layer: the fused reshape and block write.
//
// k, v: [num_tokens, num_kv_heads, head_dim], strided tokens; slots: [num_tokens], those past the cache
// are skipped. With positions, keys are turned by rotary embedding on the way (k itself is not), and
// q: [num_tokens, num_heads, head_dim] is in place. Source: Kwon et al. 2023, section 5.1.
#include "blocks.cuh"
#include "compress.cuh"
#include "rotary.cuh"

namespace pageloom {

// The 8 numbers of a row that one lane holds, as they are in memory.
template <class T, bool VECTOR> struct Eight {
    using Part = Piece<T, VECTOR>;
    static constexpr int PARTS = 8 / Part::N;
    Part parts[PARTS];

    __device__ __forceinline__ void load(const T *at) {
#pragma unroll
        for (int i = 0; i < PARTS; i++) parts[i] = Part::load(at + i * Part::N);
    }

    __device__ __forceinline__ void get(float (&x)[8]) const {
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
            float numbers[Part::N];
            parts[i].get(numbers);
#pragma unroll
            for (int j = 0; j < Part::N; j++) x[i * Part::N + j] = numbers[j];
        }
    }

    static __device__ __forceinline__ void store(T *at, const float (&x)[8]) {
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
            float numbers[Part::N];
#pragma unroll
            for (int j = 0; j < Part::N; j++) numbers[j] = x[i * Part::N + j];
            Part::of(numbers).store(at + i * Part::N);
        }
    }
};

// Turns pairs that lie within x: elements column .. column + 8 of a row.
template <bool VECTOR>
__device__ __forceinline__ void rotate_within(float (&x)[8], uint32_t column, uint32_t rotary_dim, const Angles &angles) {
    constexpr int N = VECTOR ? 4 : 1;
#pragma unroll
    for (int i = 0; i < 4; i += N) {
        // A multiple of 8 if VECTOR; even anyway.
        if (column + 2 * i >= rotary_dim) break;
        float cos[N], sin[N];
        angles.load(column / 2 + i, cos, sin);
#pragma unroll
        for (int j = 0; j < N; j++) turn(x[2 * (i + j)], x[2 * (i + j) + 1], cos[j], sin[j]);
    }
}

// Turns x: elements column .. column + 8 of `row`, each with one of the row's other half.
template <class T, bool VECTOR>
__device__ __forceinline__ void rotate_halves(float (&x)[8], const T *row, uint32_t column, uint32_t rotary_dim,
                                              const Angles &angles) {
    using Part = Piece<T, VECTOR>;
    constexpr int N = VECTOR ? 8 : 1;
    const uint32_t half = rotary_dim / 2;
#pragma unroll
    for (int i = 0; i < 8; i += N) {
        if (column + i >= rotary_dim) break;
        const bool upper = column + i >= half;
        const uint32_t pair = upper ? column + i - half : column + i;
        float cos[N], sin[N], other[N];
        angles.load(pair, cos, sin);
        const T *from = row + (upper ? pair : pair + half);
#pragma unroll
        for (int j = 0; j < N; j += Part::N) {
            float numbers[Part::N];
            Part::load(from + j).get(numbers);
#pragma unroll
            for (int k = 0; k < Part::N; k++) other[j + k] = numbers[k];
        }
#pragma unroll
        for (int j = 0; j < N; j++) {
            float a = upper ? other[j] : x[i + j], b = upper ? x[i + j] : other[j];
            turn(a, b, cos[j], sin[j]);
            x[i + j] = upper ? b : a;
        }
    }
}

// Turns x: elements column .. column + 8 of `row`, by the angles of `token`.
template <class T, bool VECTOR>
__device__ __forceinline__ void rotate(float (&x)[8], const T *row, uint32_t column, const RotaryView &rotary,
                                       uint32_t token) {
    const Angles angles = Angles::of(rotary, token);
    if (rotary.interleaved) {
        rotate_within<VECTOR>(x, column, rotary.rotary_dim, angles);
    } else {
        rotate_halves<T, VECTOR>(x, row, column, rotary.rotary_dim, angles);
    }
}

// Whether pairs can be found and angles loaded 8 at once.
__device__ __forceinline__ bool rotates_vectors(const RotaryView &rotary) {
    if (rotary.positions == nullptr) return true;
    return Angles::aligned_tables(rotary) && (rotary.interleaved || rotary.rotary_dim % 16 == 0);
}

// Stores a lane's 8 numbers, and the row's scale. All lanes of the warp call it; those without a slot
// store nothing.
__device__ __forceinline__ void store_eight(const WriteKvParams &p, const float (&x)[8], void *to, int64_t at,
                                            float *scale_to, bool stores) {
    if (p.kv_type == KvType::f32) {
        if (stores) Eight<float, true>::store(static_cast<float *>(to) + at, x);
    } else if (p.kv_type == KvType::bf16) {
        if (stores) Eight<__nv_bfloat16, true>::store(static_cast<__nv_bfloat16 *>(to) + at, x);
    } else if (p.kv_type == KvType::f16) {
        if (stores) Eight<__half, true>::store(static_cast<__half *>(to) + at, x);
    } else {
        const bool int8 = p.kv_type == KvType::int8;
        const Scale scale = scale_of(x, p.lanes, int8 ? INT8_MAX_MAGNITUDE : FP8_MAX_MAGNITUDE);
        uint32_t words[2] = {0, 0};
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const uint32_t byte = int8 ? int8_of(x[i], scale.inverse) : fp8_of(__fmul_rn(x[i], scale.inverse));
            words[i / 4] |= byte << (8 * (i % 4));
        }
        if (!stores) return;
        *reinterpret_cast<uint2 *>(static_cast<uint8_t *>(to) + at) = make_uint2(words[0], words[1]);
        if (threadIdx.x % p.lanes == 0) *scale_to = scale.scale;
    }
}

// The key and the value of one head of one token.
template <class T, bool VECTOR>
__device__ __forceinline__ void write_row(const WriteKvParams &p, uint32_t row, bool has_row) {
    const uint32_t token = has_row ? row / p.num_kv_heads : 0, head = has_row ? row % p.num_kv_heads : 0;
    const uint32_t column = threadIdx.x % p.lanes * 8;
    const uint32_t slot = has_row ? __ldg(p.slots + token) : NO_SLOT;
    // Lanes past the row's end hold zeros, which change neither its largest magnitude nor, as their
    // Hadamard blocks are others, its rotation.
    const bool stores = slot < p.num_slots && column < p.head_dim;
    float k[8] = {}, v[8] = {};
    if (stores) {
        const T *k_row = row_of<T>(p.k, token) + head * p.head_dim;
        Eight<T, VECTOR> keys, values;
        keys.load(k_row + column);
        values.load(row_of<T>(p.v, token) + head * p.head_dim + column);
        keys.get(k);
        values.get(v);
        if (p.rotary.positions != nullptr) rotate<T, VECTOR>(k, k_row, column, p.rotary, token);
    }
    if (p.kv_type == KvType::int8) hadamard(k, p.hadamard_len, p.hadamard_norm);

    const int64_t block = slot >> p.kv.block_shift;
    const uint32_t offset = slot & ((1u << p.kv.block_shift) - 1);
    const int64_t at =
        block * p.kv.block_stride + int64_t(head) * p.kv.head_stride + int64_t(offset) * p.kv.token_stride + column;
    const int64_t scale_at = block * p.kv.scale_block_stride + int64_t(head) * p.kv.scale_head_stride + offset;
    store_eight(p, k, p.kv.k, at, p.kv.k_scales + scale_at, stores);
    store_eight(p, v, p.kv.v, at, p.kv.v_scales + scale_at, stores);
}

// One head of one token's query.
template <class T, bool VECTOR>
__device__ __forceinline__ void rotate_row(const WriteKvParams &p, uint32_t row, bool has_row) {
    const uint32_t token = has_row ? row / p.num_heads : 0, head = has_row ? row % p.num_heads : 0;
    const uint32_t column = threadIdx.x % p.lanes * 8;
    T *q = row_of<T>(p.q, token) + head * p.head_dim;
    const bool turns = has_row && column < p.rotary.rotary_dim;
    float x[8];
    if (turns) {
        Eight<T, VECTOR> eight;
        eight.load(q + column);
        eight.get(x);
        rotate<T, VECTOR>(x, q, column, p.rotary, token);
    }
    // Other lanes of the row have read what they pair with.
    __syncwarp();
    if (turns) Eight<T, VECTOR>::store(q + column, x);
}

// A row for each group of p.lanes lanes of the CTA: those of keys and values first, then those of
// queries, each rounded up to whole CTAs.
template <class T, bool VECTOR> __device__ __forceinline__ void write_rows(const WriteKvParams &p) {
    const uint32_t num_kv = p.num_tokens * p.num_kv_heads;
    const uint32_t num_q = p.rotary.positions == nullptr ? 0 : p.num_tokens * p.num_heads;
    const uint32_t per_cta = blockDim.x / p.lanes, mine = threadIdx.x / p.lanes;
    const uint32_t kv_turns = (num_kv + per_cta - 1) / per_cta;
    const uint32_t turns = kv_turns + (num_q + per_cta - 1) / per_cta;
    for (uint32_t turn = blockIdx.x; turn < turns; turn += gridDim.x) {
        if (turn < kv_turns) {
            const uint32_t row = turn * per_cta + mine;
            write_row<T, VECTOR>(p, row, row < num_kv);
        } else {
            const uint32_t row = (turn - kv_turns) * per_cta + mine;
            rotate_row<T, VECTOR>(p, row, row < num_q);
        }
    }
}

template <class T> __device__ __forceinline__ void write_of(const WriteKvParams &p) {
    // The head dimension is a multiple of 8, so every head is aligned where the row is.
    if (aligned<T>(p.k) && aligned<T>(p.v) && aligned<T>(p.q) && rotates_vectors(p.rotary)) {
        write_rows<T, true>(p);
    } else {
        write_rows<T, false>(p);
    }
}

}  // namespace pageloom

extern "C" __global__ void __launch_bounds__(pageloom::ELEMENTWISE_THREADS)
    write_kv(const __grid_constant__ pageloom::WriteKvParams p) {
    using namespace pageloom;
    switch (p.dtype) {
        case Dtype::bf16: write_of<__nv_bfloat16>(p); break;
        case Dtype::f16: write_of<__half>(p); break;
        default: write_of<float>(p); break;
    }
}
