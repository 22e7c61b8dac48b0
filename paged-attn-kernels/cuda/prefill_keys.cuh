// Keys and values of attend_prefill on their way from the pages into shared memory.
//
//   bf16, f16:   pages --cp.async--> tile
//   int8, fp8:   pages --cp.async--> raw bytes --widen--> tile of bf16; scales as they are
//
// A thread widens only what it copied itself, so the raw bytes need no barrier.
#pragma once

#include "async_copy.cuh"
#include "prefill_shape.cuh"
#include "widen.cuh"

namespace pageloom {

// Copies the keys of the item in progress, a tile at a time. Keys that none of its rows sees are not
// read, since their slots may hold anything: they become zeros.
template <class S>
struct KeyLoader {
    const AttendParams &p;

    // Starts to fetch, if this thread is one of the first OCTETS, the block that holds its octet of `tile`.
    __device__ __forceinline__ void copy_block(uint32_t tile) const {
        const uint32_t thread = thread_index(), key = tile * S::KEYS + thread * 8;
        if (thread >= S::OCTETS) return;
        const PrefillItem &current = current_item<S>();
        const bool valid = key < current.keys.end && key + 8 > current.keys.begin;
        const uint32_t entry = current.item.table_offset + (key >> p.kv.block_shift);
        copy_async_4(shared_address(blocks(tile) + thread), p.block_tables + (valid ? entry : 0), valid);
    }

    static __device__ __forceinline__ uint32_t *blocks(uint32_t tile) {
        return in_shared<uint32_t>(S::BLOCKS) + (tile & 1) * S::OCTETS;
    }

    static __device__ __forceinline__ KeyOctet *octets(uint32_t tile) {
        return in_shared<KeyOctet>(S::KEY_OCTETS) + (tile & 1) * S::OCTETS;
    }

    // Writes down where the octets of `tile` are, whose blocks have arrived; a barrier lets others read it.
    __device__ __forceinline__ void place_octets(uint32_t tile) const {
        const uint32_t thread = thread_index();
        if (thread >= S::OCTETS) return;
        const uint32_t offset = tile * S::KEYS + thread * 8 & (1u << p.kv.block_shift) - 1;
        const uint32_t kv_head = current_item<S>().item.kv_head, block = blocks(tile)[thread];
        const int64_t first = block * p.kv.block_stride + uint64_t(kv_head) * p.kv.head_stride +
                              uint64_t(offset) * p.kv.token_stride;
        KeyOctet octet = {first * S::PAGE_ELEMENT_BYTES, 0};
        if constexpr (S::SCALED) {
            octet.scales = block * p.kv.scale_block_stride + uint64_t(kv_head) * p.kv.scale_head_stride + offset;
        }
        octets(tile)[thread] = octet;
    }

    // Starts to copy the keys (from = kv.k) or values (kv.v) of `tile` to `to` in shared memory.
    __device__ __forceinline__ void copy(uint32_t tile, const void *from, uint32_t to) const {
        const uint32_t thread = thread_index();
        const uint32_t row = thread / S::LANES_PER_ROW, chunk = thread % S::LANES_PER_ROW;
        const uint32_t in_octet = (row % 8 * p.kv.token_stride) * S::PAGE_ELEMENT_BYTES + chunk * 16;
        const uint32_t first_key = tile * S::KEYS + row;
        // Rows 8 apart and chunks 8 apart are swizzled alike.
        const uint32_t place = to + (S::SCALED ? thread * 16 : swizzled<S::CHUNKS>(row, chunk));
        const KeyRange keys = current_item<S>().keys;
#pragma unroll
        for (uint32_t pass = 0; pass < S::PASSES; ++pass) {
            const uint32_t at = row + pass * S::ROWS_PER_PASS;
            const bool valid = contains(keys, first_key + pass * S::ROWS_PER_PASS);
            const uint8_t *source = static_cast<const uint8_t *>(from) + octets(tile)[at / 8].bytes + in_octet;
#pragma unroll
            for (uint32_t i = 0; i < S::CHUNKS_PER_LANE; ++i) {
                const uint32_t c = chunk + i * S::LANES_PER_ROW;
                if (S::PAGE_CHUNKS % S::LANES_PER_ROW != 0 && c >= S::PAGE_CHUNKS) break;
                const uint32_t step = S::SCALED ? (pass * S::CHUNKS_PER_LANE + i) * PREFILL_THREADS
                                                : pass * S::ROWS_PER_PASS * S::CHUNKS + i * S::LANES_PER_ROW;
                copy_async_16(place + step * 16, source + i * S::LANES_PER_ROW * 16, valid);
            }
        }
    }

    // The scales of `tile`: of its keys, then of its values.
    static __device__ __forceinline__ float *scales(uint32_t tile) {
        return in_shared<float>(S::SCALES) + (tile & 1) * 2 * S::KEYS;
    }

    // Starts to copy them, zeros for keys out of range.
    __device__ __forceinline__ void copy_scales(uint32_t tile) const {
        const uint32_t thread = thread_index(), in_tile = thread % S::KEYS;
        if (thread >= 2 * S::KEYS) return;
        const float *from = thread < S::KEYS ? p.kv.k_scales : p.kv.v_scales;
        const bool valid = contains(current_item<S>().keys, tile * S::KEYS + in_tile);
        copy_async_4(shared_address(scales(tile) + thread), from + octets(tile)[in_tile / 8].scales + in_tile % 8, valid);
    }

    // Turns this thread's raw bytes at `raw` into bf16 in the tile at `to`.
    static __device__ __forceinline__ void widen_tile(uint32_t raw, uint32_t to) {
        const uint32_t thread = thread_index();
        const uint32_t row = thread / S::LANES_PER_ROW, chunk = thread % S::LANES_PER_ROW;
        // Which 8 of 16 elements go first: so that 8 lanes of a row write to 32 different banks.
        const uint32_t first = (thread >> 2 ^ thread >> 3) & 1;
#pragma unroll
        for (uint32_t turn = 0; turn < 2; ++turn) {
            const uint32_t half = turn ^ first;
            const uint32_t from = raw + thread * 16 + half * 8, place = to + swizzled<S::CHUNKS>(row, 2 * chunk + half);
#pragma unroll 2
            for (uint32_t pass = 0; pass < S::PASSES; ++pass) {
#pragma unroll
                for (uint32_t i = 0; i < S::CHUNKS_PER_LANE; ++i) {
                    if (S::PAGE_CHUNKS % S::LANES_PER_ROW != 0 && chunk + i * S::LANES_PER_ROW >= S::PAGE_CHUNKS) break;
                    const uint2 bytes = *in_shared<uint2>(from + (pass * S::CHUNKS_PER_LANE + i) * PREFILL_THREADS * 16);
                    const uint2 low = widen<S::KV_TYPE>(bytes.x), high = widen<S::KV_TYPE>(bytes.y);
                    const uint32_t step = pass * S::ROWS_PER_PASS * S::CHUNKS + 2 * i * S::LANES_PER_ROW;
                    *in_shared<uint4>(place + step * 16) = {low.x, low.y, high.x, high.y};
                }
            }
        }
    }
};

}  // namespace pageloom
