// Copies blocks of all layers within a cache: every pair of a step in one launch.
//
// from, to: [num_layers][block][block_bytes]; pairs: [num_pairs] of (from, to). Pairs may run in any
// order: no block that is written occurs in another pair. Source: Kwon et al. 2023, section 5.1.
#include "copying.cuh"

extern "C" __global__ void __launch_bounds__(pageloom::COPY_THREADS)
    copy_blocks(const __grid_constant__ pageloom::CopyBlocksParams p) {
    pageloom::copy_pairs(p);
}
