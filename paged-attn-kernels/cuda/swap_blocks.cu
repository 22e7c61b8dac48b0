// Copies blocks of all layers between two caches, of which either may lie in host memory that is mapped
// into the device's address space: every pair of a step in one launch.
//
// from, to: [num_layers][block][block_bytes]; pairs: [num_pairs] of (from, to). Run by few CTAs on a
// stream of its own: the bus is slower than memory, and the other multiprocessors keep computing.
// Source: Kwon et al. 2023, section 4.5.
#include "copying.cuh"

extern "C" __global__ void __launch_bounds__(pageloom::COPY_THREADS)
    swap_blocks(const __grid_constant__ pageloom::CopyBlocksParams p) {
    pageloom::copy_pairs(p);
}
