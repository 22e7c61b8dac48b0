#!/usr/bin/env python3
"""Times attention of PyTorch and FlashInfer on the shapes of `cargo xtask bench kernels`.

    python3 gpu_attention.py [--json FILE] [--seconds 120]

PyTorch's scaled dot-product attention reads contiguous keys and values, FlashInfer's paged decode
pages of 16 tokens in random order. bf16, head_dim 128; what is not installed is left out, with the
reason. Each case has so many copies of its keys and values that they do not fit in the L2 cache, runs
captured in a CUDA graph where that is possible, and is compared with float64 once before it is timed.
Times are medians of CUDA events. "% of copy" is the bytes of keys and values a second over the rate of
a large device-to-device copy, bytes read and written counted.
"""

import argparse
import json
import math
import statistics
import sys
import time

HEAD_DIM = 128
PAGE = 16
# (query heads, key-value heads), batch, context.
DECODES = [
    ((heads, kv_heads), batch, context)
    for heads, kv_heads in [(32, 8), (40, 40)]
    for batch, context in [(1, 512), (8, 2048), (8, 8192), (64, 2048), (64, 8192)]
]
PREFILLS = [((32, 8), 1, 2048), ((32, 8), 1, 8192)]
ROTATED_BYTES = 512 << 20


def milliseconds(torch, calls, repeats=20):
    """Median time of one of `calls`."""

    def all_of_them():
        for call in calls:
            call()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            all_of_them()
    torch.cuda.synchronize()
    run = all_of_them
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            all_of_them()
        run = graph.replay
    except RuntimeError:
        torch.cuda.synchronize()
    run()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / len(calls))
    return statistics.median(times)


def copy_rate(torch):
    """GB/s of a copy of 1 GiB, bytes read and written."""
    source = torch.randint(-128, 127, (1 << 30,), dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / milliseconds(torch, [lambda: target.copy_(source)]) / 1e6


def exact(torch, q, k, v, group):
    """Attention of one sequence in float64: q [heads, D], k and v [kv_heads, context, D]."""
    k, v = (x.double().repeat_interleave(group, 0) for x in (k, v))
    scores = torch.einsum("hd,hsd->hs", q.double(), k) / math.sqrt(HEAD_DIM)
    return torch.einsum("hs,hsd->hd", scores.softmax(-1), v)


class Decode:
    """Inputs of one case, in as many sets as the L2 cache cannot hold."""

    def __init__(self, torch, heads, batch, context):
        self.torch, self.batch, self.context = torch, batch, context
        self.heads, self.kv_heads = heads
        self.bytes = 2 * batch * context * self.kv_heads * HEAD_DIM * 2
        sets = max(1, min(64, math.ceil(ROTATED_BYTES / self.bytes)))
        make = lambda *shape: torch.randn(*shape, dtype=torch.bfloat16, device="cuda")
        self.q = [make(batch, self.heads, HEAD_DIM) for _ in range(sets)]
        shape = (batch, self.kv_heads, context, HEAD_DIM)
        self.kv = [(make(*shape), make(*shape)) for _ in range(sets)]

    def sdpa(self):
        attend = self.torch.nn.functional.scaled_dot_product_attention
        grouped = self.heads != self.kv_heads

        def call(q, k, v):
            return attend(q.unsqueeze(2), k, v, enable_gqa=grouped).squeeze(2)

        return [lambda q=q, kv=kv: call(q, *kv) for q, kv in zip(self.q, self.kv)]

    def flashinfer(self):
        import flashinfer

        torch, pages = self.torch, self.batch * self.context // PAGE
        space = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            space, "HND", use_tensor_cores=self.heads != self.kv_heads
        )
        order = torch.randperm(pages, device="cuda")
        starts = torch.arange(self.batch + 1, dtype=torch.int32, device="cuda") * (self.context // PAGE)
        last = torch.full((self.batch,), PAGE, dtype=torch.int32, device="cuda")
        wrapper.plan(
            starts, order.to(torch.int32), last, self.heads, self.kv_heads, HEAD_DIM, PAGE,
            q_data_type=torch.bfloat16, kv_data_type=torch.bfloat16,
        )

        def paged(x):
            in_order = x.transpose(1, 2).reshape(pages, PAGE, self.kv_heads, HEAD_DIM).transpose(1, 2)
            out = torch.empty_like(in_order, memory_format=torch.contiguous_format)
            out[order] = in_order
            return out

        caches = [(paged(k), paged(v)) for k, v in self.kv]
        return [lambda q=q, cache=cache: wrapper.run(q, cache) for q, cache in zip(self.q, caches)]

    def error(self, call):
        torch, group = self.torch, self.heads // self.kv_heads
        found = call()[0].double()
        expected = exact(torch, self.q[0][0], self.kv[0][0][0], self.kv[0][1][0], group)
        return ((found - expected).norm() / expected.norm()).item()


def decode_rows(torch, copy, deadline):
    for heads, batch, context in DECODES:
        if time.monotonic() > deadline:
            return
        case = Decode(torch, heads, batch, context)
        for peer in ("sdpa", "flashinfer"):
            row = {"phase": "decode", "peer": peer, "heads": heads, "batch": batch, "context": context}
            try:
                calls = getattr(case, peer)()
                row["error"] = case.error(calls[0])
                row["ms"] = milliseconds(torch, calls)
                row["percent_of_copy"] = 100 * case.bytes / row["ms"] / 1e6 / copy
            except (ImportError, RuntimeError, TypeError, ValueError) as reason:
                row["skipped"] = f"{type(reason).__name__}: {str(reason)[:100]}"
            yield row
        del case
        torch.cuda.empty_cache()


def prefill_rows(torch, deadline):
    attend = torch.nn.functional.scaled_dot_product_attention
    for (heads, kv_heads), batch, length in PREFILLS:
        if time.monotonic() > deadline:
            return
        make = lambda n: torch.randn(batch, n, length, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
        q, k, v = make(heads), make(kv_heads), make(kv_heads)
        ms = milliseconds(torch, [lambda: attend(q, k, v, is_causal=True, enable_gqa=True)])
        operations = 2 * batch * heads * length * length * HEAD_DIM
        yield {
            "phase": "prefill", "peer": "sdpa", "heads": (heads, kv_heads), "batch": batch,
            "context": length, "ms": ms, "tflops": operations / ms / 1e9,
        }


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--json", help="where to write the rows")
    options.add_argument("--seconds", type=float, default=120, help="starts no case after this")
    options = options.parse_args()
    try:
        import torch
    except ImportError:
        sys.exit("PyTorch is not installed")
    if not torch.cuda.is_available():
        sys.exit("PyTorch sees no CUDA device")
    deadline = time.monotonic() + options.seconds
    copy = copy_rate(torch)
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, copy {copy:.0f} GB/s")
    rows = []
    for row in [*decode_rows(torch, copy, deadline), *prefill_rows(torch, deadline)]:
        rows.append(row)
        case = f"{row['phase']} {row['heads']} batch {row['batch']} context {row['context']} {row['peer']}"
        if "skipped" in row:
            print(f"{case}: left out, {row['skipped']}")
        elif row["phase"] == "decode":
            print(f"{case}: {row['ms']:.3f} ms, {row['percent_of_copy']:.1f} % of copy, error {row['error']:.1e}")
        else:
            print(f"{case}: {row['ms']:.3f} ms, {row['tflops']:.0f} TFLOP/s")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"device": torch.cuda.get_device_name(), "copy_gb_s": copy, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
