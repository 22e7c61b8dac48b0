#!/usr/bin/env python3
"""Makes the tiny models under tests/models and the outputs they must have.

The models are random: what they say means nothing, but each one walks the code path of a family that
Pageloom serves, and transformers says what comes out. Everything is drawn from fixed seeds (NumPy's
PCG64), so a second run writes the same weights. The references are float32, eager attention, on the CPU.

    python3 -m venv .venv && . .venv/bin/activate
    pip install torch==2.15.0 transformers==5.23.0 safetensors==0.8.0 gguf==0.19.0 numpy==2.4.6 \\
        accelerate==1.15.0
    python model-runner/tests/make_models.py            # writes model-runner/tests/models
    python model-runner/tests/make_models.py --check    # compares what is there with transformers' GGUF loader

What is where, and what each model is there to catch, is in models/README.md.
"""

import argparse
import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Q
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
OUT = HERE / "models"
PROMPT_LENGTHS = (1, 7, 33)
NUM_GREEDY = 16
# A greedy row is only kept if no step is a closer call than this: float32 sums in another order must not flip it.
MIN_GAP = 0.02

# ---------------------------------------------------------------- families

# Every model differs from the others in what a loader might take for granted: theta, epsilon, head size,
# the ratio of query to key heads, vocabularies and widths that are no multiple of a vector register.
COMMON = {"hidden_act": "silu", "initializer_range": 0.02, "num_hidden_layers": 2, "use_cache": True}
BPE_VOCAB = 288
MODELS = {
    "llama": {
        "seed": 11,
        "dtype": torch.float32,
        "config": {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32",
            "vocab_size": BPE_VOCAB, "hidden_size": 32, "intermediate_size": 64,
            "num_attention_heads": 2, "num_key_value_heads": 1, "attention_bias": False, "mlp_bias": False,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None, "max_position_embeddings": 128,
            "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
        },
    },
    "smollm2": {
        "seed": 12,
        "dtype": torch.bfloat16,
        "config": {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
            "vocab_size": BPE_VOCAB, "hidden_size": 48, "intermediate_size": 72,
            "num_attention_heads": 3, "num_key_value_heads": 1, "attention_bias": False,
            "rms_norm_eps": 1e-5, "rope_theta": 100000, "rope_scaling": None, "max_position_embeddings": 256,
            "rope_interleaved": False, "tie_word_embeddings": True,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
        },
    },
    "mistral": {
        "seed": 13,
        "dtype": torch.float16,
        "config": {
            "architectures": ["MistralForCausalLM"], "model_type": "mistral", "torch_dtype": "float16",
            "vocab_size": 131, "hidden_size": 48, "intermediate_size": 80,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": None,
            "rms_norm_eps": 1e-2, "rope_theta": 1000000.0, "max_position_embeddings": 128,
            "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
        },
    },
    "qwen2": {
        "seed": 14,
        "dtype": torch.bfloat16,
        "config": {
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "torch_dtype": "bfloat16",
            "vocab_size": BPE_VOCAB, "hidden_size": 64, "intermediate_size": 32,
            "num_attention_heads": 4, "num_key_value_heads": 2,
            "use_sliding_window": False, "sliding_window": 16, "max_window_layers": 1,
            "rms_norm_eps": 1e-6, "rope_theta": 50000.0, "max_position_embeddings": 128,
            "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
        },
    },
    # Written the way transformers 5 writes configurations: rope_parameters, dtype, layer_types.
    "qwen3": {
        "seed": 15,
        "dtype": torch.bfloat16,
        "config": {
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "dtype": "bfloat16",
            "vocab_size": BPE_VOCAB, "hidden_size": 32, "intermediate_size": 96,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "attention_bias": False,
            "use_sliding_window": False, "sliding_window": None, "max_window_layers": 2,
            "layer_types": ["full_attention", "full_attention"],
            "rms_norm_eps": 1e-6, "rope_parameters": {"rope_theta": 20000.0, "rope_type": "default"},
            "max_position_embeddings": 128, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
        },
    },
    # original_max_position_embeddings is small enough for all three branches (kept, blended, divided) to count.
    "llama3": {
        "seed": 16,
        "dtype": torch.bfloat16,
        "shards": 3,
        "config": {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
            "vocab_size": 160, "hidden_size": 64, "intermediate_size": 32,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
            "attention_bias": False, "mlp_bias": False, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
            "max_position_embeddings": 256, "tie_word_embeddings": False,
            "bos_token_id": 1, "eos_token_id": [2, 0],
        },
    },
}

# file stem, model it is made of, type of the matrices, type of the embedding (and output) table
GGUFS = [
    ("llama-f32", "llama", Q.F32, Q.F32),
    ("llama-f16", "llama", Q.F16, Q.F16),
    ("llama-bf16", "llama", Q.BF16, Q.BF16),
    ("llama-q4_0", "llama", Q.Q4_0, Q.Q4_0),
    ("llama-q4_1", "llama", Q.Q4_1, Q.Q4_1),
    ("llama-q8_0", "llama", Q.Q8_0, Q.Q8_0),
    # What published files look like: the table that is also the output kept finer than the rest.
    ("qwen2-q4_1-mixed", "qwen2", Q.Q4_1, Q.Q8_0),
    ("qwen3-q8_0", "qwen3", Q.Q8_0, Q.Q8_0),
    ("llama3-f16", "llama3", Q.F16, Q.F16),
]
FILE_TYPE = {
    Q.F32: gguf.LlamaFileType.ALL_F32, Q.F16: gguf.LlamaFileType.MOSTLY_F16,
    Q.BF16: gguf.LlamaFileType.MOSTLY_BF16, Q.Q4_0: gguf.LlamaFileType.MOSTLY_Q4_0,
    Q.Q4_1: gguf.LlamaFileType.MOSTLY_Q4_1, Q.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0,
}

for _spec in MODELS.values():
    _spec["config"] = COMMON | _spec["config"]


def weight(rng, name, shape):
    """One random tensor, wide enough that attention is peaked and logits are far apart."""
    x = rng.standard_normal(shape, dtype=np.float32)
    if "norm" in name:
        return 1.0 + 0.25 * x
    if name.endswith("bias"):
        return 0.5 * x
    return x * np.float32(1.5 / np.sqrt(shape[-1]))


def make_weights(spec):
    """The state dict of `spec`, in its stored type; a tied model has no lm_head."""
    config = AutoConfig.for_model(**spec["config"])
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in AutoModelForCausalLM.from_config(config).state_dict().items()}
    if spec["config"]["tie_word_embeddings"]:
        shapes.pop("lm_head.weight", None)
    rng = np.random.default_rng(spec["seed"])
    return {k: torch.from_numpy(weight(rng, k, shapes[k])).to(spec["dtype"]) for k in sorted(shapes)}


def write_folder(name, spec, weights):
    folder = OUT / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(spec["config"], indent=2) + "\n")
    shards = spec.get("shards", 1)
    meta = {"format": "pt"}
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata=meta)
        return folder
    names, index = list(weights), {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = names[i::shards]  # dealt round: a layer's tensors lie in different files
        index |= {n: file for n in part}
        save_file({n: weights[n] for n in part}, folder / file, metadata=meta)
    total = sum(w.numel() * w.element_size() for w in weights.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}, indent=1)
    (folder / "model.safetensors.index.json").write_text(text + "\n")
    return folder


# ---------------------------------------------------------------- tokeniser

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = [
    "t h", "h e", "i n", "a n", "Ġ t", "Ġt h", "Ġth e", "e r", "r e", "o n", "Ġ a", "o u", "n d", "an d", "Ġ and",
    "i s", "Ġ is", "e n", "o r", "Ġ o", "Ġo f", "l l", "e ll", "H ell", "Hell o", "Ġ w", "or l", "Ġw orl", "Ġworl d",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a tiny test model<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = [
    "Hello world", "the end of the world and then", " on  and\n\non ", "héllo wörld, 12345!", "日本語 and 🙂", "",
    "<|im_start|>user\nin<|im_end|>\n", "it's THE end",
]
CHAT = [{"role": "user", "content": "Hello, who is the one?"}]


def byte_alphabet():
    """GPT-2's printable stand-in for each byte (Radford et al. 2019), in the order its vocabularies list them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(len(rest))]


def tokens():
    vocab = SPECIALS + byte_alphabet() + [m.replace(" ", "") for m in MERGES]
    assert len(vocab) == BPE_VOCAB == len(set(vocab)), len(vocab)
    return vocab


def write_tokenizer(folder):
    """tokenizer.json in SmolLM2's form: digits apart, then GPT-2's byte-level BPE."""
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    data = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": t, **special} for i, t in enumerate(SPECIALS)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {t: i for i, t in enumerate(tokens())}, "merges": [m.split(" ") for m in MERGES],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False) + "\n")
    config = {
        "tokenizer_class": "GPT2Tokenizer", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>", "pad_token": "<|im_end|>", "add_prefix_space": False,
        "clean_up_tokenization_spaces": False, "model_max_length": 256, "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}) + "\n")


def tokenizer_reference(folder):
    tok = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), chat_template=CHAT_TEMPLATE)
    rows = [{"text": t, "ids": tok.encode(t, add_special_tokens=False)} for t in TEXTS]
    for row in rows:
        assert tok.decode(row["ids"], clean_up_tokenization_spaces=False) == row["text"]
    text = tok.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    chat = {"messages": CHAT, "text": text, "ids": tok.encode(text, add_special_tokens=False)}
    return {"vocab_size": BPE_VOCAB, "texts": rows, "chat": chat}


# ---------------------------------------------------------------- GGUF

GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}


def gguf_name(hf):
    stem, kind = hf.rsplit(".", 1)
    if stem.startswith("model.layers."):
        layer, rest = stem.removeprefix("model.layers.").split(".", 1)
        return f"blk.{layer}.{GGUF_NAMES[rest]}.{kind}"
    return f"{GGUF_NAMES[stem]}.{kind}"


def permutation(name, config, rows):
    """Row order of a llama-arch file's q and k matrices, or None.

    GGUF's "llama" rotates neighbours (x[2i], x[2i+1]); Hugging Face rotates halves (x[i], x[i+d/2]), so the
    converter interleaves the halves of each head. Other architectures keep the order of the halves.
    """
    if config["model_type"] != "llama" or not ("q_proj" in name or "k_proj" in name):
        return None
    heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(rows)


def rope_factors(config):
    """What llama.cpp's converter stores in rope_freqs.weight: the divisor of each rotation frequency."""
    s = config["rope_scaling"]
    dim, original = config["head_dim"], s["original_max_position_embeddings"]
    wavelen = 2 * np.pi * config["rope_theta"] ** (np.arange(0, dim, 2) / dim)
    low, high = s["low_freq_factor"], s["high_freq_factor"]
    smooth = np.clip((original / wavelen - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / s["factor"] + smooth)).astype(np.float32)


def write_gguf(path, config, weights, matrix_type, table_type):
    arch = config["model_type"]
    w = gguf.GGUFWriter(path, arch)
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    w.add_name(f"tiny {path.stem}")
    w.add_file_type(FILE_TYPE[matrix_type])
    w.add_quantization_version(2)
    w.add_vocab_size(config["vocab_size"])
    w.add_context_length(config["max_position_embeddings"])
    w.add_embedding_length(config["hidden_size"])
    w.add_block_count(config["num_hidden_layers"])
    w.add_feed_forward_length(config["intermediate_size"])
    w.add_head_count(heads)
    w.add_head_count_kv(config["num_key_value_heads"])
    w.add_layer_norm_rms_eps(config["rms_norm_eps"])
    w.add_rope_freq_base((config.get("rope_parameters") or config)["rope_theta"])
    if arch == "llama":
        w.add_rope_dimension_count(head_dim)
    if "head_dim" in config:
        w.add_key_length(head_dim)
        w.add_value_length(head_dim)
    vocab = (tokens() + [f"[PAD{i}]" for i in range(config["vocab_size"])])[: config["vocab_size"]]
    kinds = [gguf.TokenType.CONTROL if t in SPECIALS else gguf.TokenType.NORMAL for t in vocab]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    w.add_token_list(vocab)
    w.add_token_types(kinds)
    w.add_token_merges([m for m in MERGES if m.replace(" ", "") in vocab])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_unk_token_id(0)
    w.add_pad_token_id(2)
    w.add_add_bos_token(False)
    w.add_add_space_prefix(False)
    w.add_chat_template(CHAT_TEMPLATE)
    if config.get("rope_scaling"):
        w.add_tensor("rope_freqs.weight", rope_factors(config))
    for name, tensor in weights.items():
        x = tensor.float().numpy()
        order = permutation(name, config, x.shape[0])
        x = x if order is None else x[order]
        kind = Q.F32 if x.ndim == 1 else table_type if name in ("model.embed_tokens.weight", "lm_head.weight") else matrix_type
        w.add_tensor(gguf_name(name), gguf.quants.quantize(x, kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def read_gguf(path, config, names):
    """The file's weights dequantised to f32, under their Hugging Face names and row orders."""
    stored = {t.name: t for t in gguf.GGUFReader(path).tensors}
    out = {}
    for name in names:
        t = stored.pop(gguf_name(name))
        x = gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32)
        order = permutation(name, config, x.shape[0])
        out[name] = torch.from_numpy(np.ascontiguousarray(x if order is None else x[np.argsort(order)]))
    assert set(stored) <= {"rope_freqs.weight"}, stored.keys()
    return out


# ---------------------------------------------------------------- references


def rounded(x, digits=6):
    return [float(f"{v:.{digits}g}") for v in x]


@torch.no_grad()
def reference(model, prompt):
    """Logits of the last position, best token of each position, and a greedy continuation, or None if too close."""
    ids = list(prompt)
    logits = model(torch.tensor([ids])).logits[0]
    out = {"prompt": ids, "last_logits": rounded(logits[-1].tolist()), "top1": logits.argmax(-1).tolist()}
    greedy, gaps = [], []
    for _ in range(NUM_GREEDY):
        best = logits[-1].topk(2)
        greedy.append(best.indices[0].item())
        gaps.append((best.values[0] - best.values[1]).item())
        logits = model(torch.tensor([ids + greedy])).logits[0]
    tops = model(torch.tensor([ids])).logits[0].topk(2).values
    if min(gaps + (tops[:, 0] - tops[:, 1]).tolist()) < MIN_GAP:
        return None
    return out | {"greedy": greedy, "gap": rounded(gaps, 4)}


def references(model, config):
    """One reference for each prompt length; the first prompts of a fixed series whose steps are no close calls."""
    rng = np.random.default_rng(config["vocab_size"])
    rows = []
    for length in PROMPT_LENGTHS:
        for _ in range(200):
            row = reference(model, rng.integers(3, config["vocab_size"], length).tolist())
            if row:
                rows.append(row)
                break
        else:
            raise SystemExit(f"no prompt of {length} tokens without a close call")
    return rows


def load_float32(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def dequant_rows():
    """Packed bytes and values of each type; the K types, which gguf cannot make, from random blocks."""
    rng = np.random.default_rng(99)
    rows = []
    for kind in (Q.F16, Q.BF16, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0):
        # A row that is all zero has scale 0, a row with one outlier a large one.
        x = rng.standard_normal((3, 64), dtype=np.float32)
        x[1, 5] = -37.5
        x[2, :32] = 0.0
        for row in gguf.quants.quantize(x, kind):
            rows.append((kind, row.view(np.uint8)))
    for kind in (Q.Q4_K, Q.Q5_K, Q.Q6_K):
        _, size = gguf.GGML_QUANT_SIZES[kind]
        block = rng.integers(0, 256, size, dtype=np.uint8)
        at = size - 2 if kind == Q.Q6_K else 0  # where the f16 scales lie
        scales = np.array([0.0371, 0.0123][: 1 if kind == Q.Q6_K else 2], dtype=np.float16).view(np.uint8)
        block[at : at + len(scales)] = scales
        rows.append((kind, block))
    out = []
    for kind, raw in rows:
        values = gguf.quants.dequantize(raw, kind).astype(np.float32).reshape(-1)
        out.append({"type": kind.name, "hex": raw.tobytes().hex(), "values": rounded(values.tolist(), 9)})
    return out


def dump(path, data):
    """JSON with one line for each entry two levels down: small, and a diff shows which model moved."""
    parts = []
    for key, value in data.items():
        if isinstance(value, dict) and all(isinstance(v, dict) for v in value.values()):
            inner = ",\n".join(f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in value.items())
            parts.append(f"{json.dumps(key)}: {{\n{inner}\n}}")
        elif isinstance(value, list):
            inner = ",\n".join(json.dumps(v, separators=(",", ":")) for v in value)
            parts.append(f"{json.dumps(key)}: [\n{inner}\n]")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=True)}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def check():
    """Loads the GGUF files with transformers' own reader and compares with the recorded logits.

    Not qwen3 and llama3: that reader (5.23) takes neither `attention.key_length` nor `rope_freqs.weight`.
    """
    recorded = json.loads((OUT / "references.json").read_text())["models"]
    for stem, name, _, _ in GGUFS:
        if name in ("qwen3", "llama3"):
            continue
        model = AutoModelForCausalLM.from_pretrained(
            OUT / "gguf", gguf_file=f"{stem}.gguf", dtype=torch.float32, attn_implementation="eager").eval()
        worst = 0.0
        for row in recorded[f"gguf/{stem}.gguf"]["rows"]:
            with torch.no_grad():
                got = model(torch.tensor([row["prompt"]])).logits[0, -1]
            worst = max(worst, (got - torch.tensor(row["last_logits"])).abs().max().item())
        print(f"{stem}: largest difference {worst:.2g}")
        assert worst < 1e-3


def make():
    for part in (*MODELS, "gguf"):
        shutil.rmtree(OUT / part, ignore_errors=True)
    models, weights = {}, {}
    for name, spec in MODELS.items():
        weights[name] = make_weights(spec)
        folder = write_folder(name, spec, weights[name])
        models[name] = {"rows": references(load_float32(folder), spec["config"])}
        print(name, sum(f.stat().st_size for f in folder.iterdir()))
    write_tokenizer(OUT / "smollm2")
    (OUT / "gguf").mkdir()
    for stem, name, matrix_type, table_type in GGUFS:
        config, path = MODELS[name]["config"], OUT / "gguf" / f"{stem}.gguf"
        write_gguf(path, config, weights[name], matrix_type, table_type)
        model = load_float32(OUT / name)
        missing = model.load_state_dict(read_gguf(path, config, list(weights[name])), strict=False)
        assert set(missing.missing_keys) <= {"lm_head.weight"} and not missing.unexpected_keys, missing
        model.tie_weights()
        models[f"gguf/{stem}.gguf"] = {"rows": references(model, config)}
        print(stem, path.stat().st_size)
    data = {
        "made_with": f"torch {torch.__version__}, transformers {__import__('transformers').__version__}, "
        f"gguf 0.19.0, numpy {np.__version__}",
        "models": models, "dequant": dequant_rows(), "tokenizer": tokenizer_reference(OUT / "smollm2"),
    }
    dump(OUT / "references.json", data)
    print("all", sum(f.stat().st_size for f in OUT.rglob("*") if f.is_file()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with transformers' GGUF loader, write nothing")
    torch.set_num_threads(1)
    check() if parser.parse_args().check else make()
