"""OpenVINO GenAI at the work of `pageloom bench`, for `cargo xtask bench cpu`.

    python openvino_genai_bench.py MODEL.gguf --batch-sizes 1,8,32,64        speed and memory
    python openvino_genai_bench.py MODEL.gguf --references smollm2.json      accuracy

Prints a line of JSON for each thing it knows: `ready` (seconds to import and to load), `rates`
(tokens a second at a batch size, the terms of `pageloom bench --json`), `memory` (bytes resident),
`score` (log-probabilities of a text's tokens) and `chat` (the text of a greedy answer).

    pip install openvino-genai==2026.4.1.0
"""

import time

STARTED = time.monotonic()

import argparse
import json
import random

import numpy
import openvino
import openvino_genai

# As `pageloom bench` draws them: no special tokens at either end of the vocabulary.
PROMPT_IDS = (100, 47_999)
# Enough for 64 sequences of 256 tokens in any number format.
CACHE_GIB = 4


def say(kind, **facts):
    print(json.dumps({"kind": kind, **facts}), flush=True)


def resident_bytes():
    with open("/proc/self/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return {name: int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon", "RssFile")}


def load(model, threads):
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = CACHE_GIB
    scheduler.max_num_batched_tokens = 2048
    scheduler.max_num_seqs = 256
    scheduler.enable_prefix_caching = False
    scheduler.dynamic_split_fuse = True
    properties = {"INFERENCE_NUM_THREADS": threads} if threads else {}
    return openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)


def tensor(ids):
    return openvino.Tensor(numpy.array([ids], dtype=numpy.int64))


def forced(output_len):
    """Greedy, and so many tokens whatever they are."""
    config = openvino_genai.GenerationConfig()
    config.do_sample = False
    config.ignore_eos = True
    config.min_new_tokens = output_len
    config.max_new_tokens = output_len
    return config


def seconds(pipeline, batch_size, prompt_len, output_len):
    prompts = [
        tensor([random.randint(*PROMPT_IDS) for _ in range(prompt_len)]) for _ in range(batch_size)
    ]
    began = time.monotonic()
    results = pipeline.generate(prompts, [forced(output_len)] * batch_size)
    elapsed = time.monotonic() - began
    for result in results:
        found = len(result.m_generation_ids[0])
        if found != output_len:
            raise SystemExit(f"{found} tokens were generated instead of {output_len}")
    return elapsed


def bench(pipeline, args):
    seconds(pipeline, 1, args.prompt_len, 4)
    for batch_size in args.batch_sizes:
        prefill = seconds(pipeline, batch_size, args.prompt_len, 1)
        whole = seconds(pipeline, batch_size, args.prompt_len, args.output_len)
        say(
            "rates",
            batch_size=batch_size,
            prefill=batch_size * args.prompt_len / prefill,
            decode=batch_size * (args.output_len - 1) / (whole - prefill),
            all=batch_size * (args.prompt_len + args.output_len) / whole,
        )


def run_request(pipeline, number, ids, config):
    handle = pipeline.add_request(number, tensor(ids), config)
    while pipeline.has_non_finished_requests():
        pipeline.step()
    return handle.read_all()[0]


def score(pipeline, references):
    """Log-probabilities through `echo`; it gives those of the text's own tokens only."""
    for index, row in enumerate(references["score"]):
        config = openvino_genai.GenerationConfig()
        config.do_sample = False
        config.max_new_tokens = 1
        config.echo = True
        config.logprobs = 1
        output = run_request(pipeline, index, row["ids"], config)
        # The first token is predicted by nothing, the last one was generated.
        wanted = len(row["ids"])
        logprobs = list(output.generated_log_probs)[:wanted][-(wanted - 1) :]
        say("score", index=index, logprob=[float(value) for value in logprobs])


def chat(pipeline, references):
    tokenizer = pipeline.get_tokenizer()
    for index, row in enumerate(references["greedy"]):
        if row["kind"] != "chat":
            continue
        config = openvino_genai.GenerationConfig()
        config.do_sample = False
        config.max_new_tokens = len(row["output_ids"])
        output = run_request(pipeline, index, row["prompt_ids"], config)
        say("chat", index=index, text=tokenizer.decode(list(output.generated_ids)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument(
        "--batch-sizes", default=[], type=lambda text: [int(size) for size in text.split(",")]
    )
    parser.add_argument("--prompt-len", default=128, type=int)
    parser.add_argument("--output-len", default=128, type=int)
    parser.add_argument("--threads", default=0, type=int)
    parser.add_argument("--references")
    args = parser.parse_args()
    random.seed(0)
    imported = time.monotonic()
    pipeline = load(args.model, args.threads)
    ready = time.monotonic()
    say("ready", import_s=imported - STARTED, load_s=ready - imported)
    say("memory", when="ready", **resident_bytes())
    bench(pipeline, args)
    if args.batch_sizes:
        say("memory", when="done", **resident_bytes())
    if args.references:
        with open(args.references) as file:
            references = json.load(file)
        chat(pipeline, references)
        score(pipeline, references)


main()
