// Copies from global to shared memory that run beside arithmetic (cp.async, sm_80).
#pragma once

#include <cstdint>

namespace pageloom {

// Address of shared memory as instructions take it.
__device__ __forceinline__ uint32_t shared_address(const void *p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Starts to copy 16 bytes; both addresses are multiples of 16. Past L1: what is streamed once need not
// push other lines out.
__device__ __forceinline__ void copy_async_16(uint32_t to, const void *from) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(__cvta_generic_to_global(from))
                 : "memory");
}

// The same. Unless `valid`, writes zeros and reads nothing.
__device__ __forceinline__ void copy_async_16(uint32_t to, const void *from, bool valid) {
    const uint32_t bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)),
                 "r"(bytes)
                 : "memory");
}

// As copy_async_16, of 4 bytes.
__device__ __forceinline__ void copy_async_4(uint32_t to, const void *from, bool valid) {
    const uint32_t bytes = valid ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)), "r"(bytes)
                 : "memory");
}

// Closes the group of the copies that this thread has started since the last call. A group may be empty.
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until all but the last `PENDING` groups of this thread are done. Other threads see the bytes
// after a barrier.
template <int PENDING>
__device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

}  // namespace pageloom
