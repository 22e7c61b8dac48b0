"""Records what the beam search of Hugging Face transformers gives for the real model.

The test that reads `beams.json` compares Pageloom's beam search with it. Nothing but this recording needs Python.
Recorded with Python 3.12, transformers 5.23.0, torch 2.13.0 (CPU, one thread), gguf 0.19.0, accelerate 1.15.0:

    python record_beams.py SmolLM2-135M-Instruct.Q4_1.gguf beams.json

The first argument is the model's GGUF file, the second the file to write. It takes about ten minutes.

Weights: the Q4_1 file dequantised and rounded to bf16, run in float32. Before anything is recorded the same
weights must reproduce the log-probabilities and greedy tokens of model-runner/tests/fixtures/smollm2.json.

Every case is computed twice: by `generate`, and by `Search` below, which does the bookkeeping of beam search
again from the candidates that `generate` saw; both must agree. `Search` also measures how near each decision
was to falling the other way (see its comments), and a forward pass over each returned sequence, without a
cache, must give its score.

Format: one prompt a line under `prompts`, one case a line under `cases`.

- `prompts`: `name`, `kind` (`completion` or `chat`), `text` or `messages`, `ids` (a chat's come from the model's own
  template, which adds its default system turn when there is none).
- `cases`: `name`; `prompt` (a name); `width` (num_beams and num_return_sequences), `max_new_tokens`, `length_penalty`,
  `early_stopping`, `eos_ids`, and where they are used `repetition_penalty` and `min_new_tokens`; then, best first,
  `sequences` (generated ids, an end token included where one was generated) and `scores` (sum of log-probabilities
  over length ** length_penalty, the length being that of the row in `sequences`); `steps` (forward passes); `gaps`
  (kind: [gap, step]), `min_gap` (the least of them), and `near_tie` (`min_gap` under 1e-3): an implementation that is
  right can differ there.

Kinds of gaps, all in units of accumulated log-probability:

- `running`: the last continuation that was kept and the first that was not;
- `rank`: an ended continuation and the edge of the best `width`, beyond which ended ones are dropped;
- `finished`: the worst finished hypothesis that was kept and the best that was not;
- `stop`: the best running score and the worst finished one, when the comparison ends or continues the search;
- `order`: two neighbours in the result (a flip changes only the order).
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from prompts import PROMPTS, VARIANTS

WIDTHS = (2, 4, 6)
NEAR_TIE = 1e-3
REFERENCE = Path(__file__).resolve().parents[3] / "model-runner/tests/fixtures/smollm2.json"
DEAD = -1e8  # transformers marks a candidate that cannot be chosen by adding -1e9


def load(gguf):
    place = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).to(torch.float32)
    return model, AutoTokenizer.from_pretrained(**place)


def log_probs(model, ids):
    """[len(ids), vocab]: row i is about the token after ids[i]."""
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids]), use_cache=False).logits[0].float(), dim=-1)


def check_weights(model, reference):
    """The largest error of a log-probability; fails unless scores and greedy tokens are the reference's."""
    worst = 0.0
    for row in reference["score"]:
        found = log_probs(model, row["ids"])[:-1].gather(1, torch.tensor(row["ids"][1:])[:, None])[:, 0]
        worst = max(worst, (found - torch.tensor(row["logprob"])).abs().max().item())
    assert worst < 1e-4, worst
    for row in reference["greedy"]:
        config = GenerationConfig(do_sample=False, max_new_tokens=48, eos_token_id=[2], pad_token_id=2)
        prompt = torch.tensor([row["prompt_ids"]])
        out = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
        assert out[0, prompt.shape[1] :].tolist() == row["output_ids"], row["prompt"]
    return worst


class Search:
    """Beam search once more, over the candidates of each step, with the distance of each decision from its edge."""

    def __init__(self, case, prompt_len):
        self.case, self.prompt_len = case, prompt_len
        self.finished = []  # (score, length, ids), best first, at most `width`
        self.running = [()]
        self.gaps = {}
        self.step = 0
        self.stopped = False

    def gap(self, kind, value):
        if kind not in self.gaps or value < self.gaps[kind][0]:
            self.gaps[kind] = (value, self.step)

    def advance(self, accumulated, sequences):
        """One step. `accumulated`: [width * vocab] scores of all continuations; `sequences`: [width, max_length]."""
        case, width, eos = self.case, self.case["width"], self.case["eos_ids"]
        assert not self.stopped
        self.step += 1
        length = self.step
        vocab = accumulated.shape[0] // width
        begun = [tuple(row[self.prompt_len : self.prompt_len + length - 1]) for row in sequences.tolist()]
        assert begun == self.running or length == 1

        # The best of all, and all that end: enough to decide, and to know the nearest alternative.
        chosen = set(torch.topk(accumulated, (len(eos) + 1) * width + 8).indices.tolist())
        chosen |= {beam * vocab + token for beam in range(width) for token in eos}
        ranked = sorted(((accumulated[i].item(), i) for i in chosen), reverse=True)
        ranked = [(score, begun[i // vocab] + (i % vocab,)) for score, i in ranked if score > DEAD]

        last = length == case["max_new_tokens"]
        self.finish(ranked, length, last)
        if last:
            self.stopped = True
            return
        going = [(score, ids) for score, ids in ranked if ids[-1] not in eos]
        self.gap("running", going[width - 1][0] - going[width][0])
        self.running = [ids for _, ids in going[:width]]
        self.decide_stop(going[0][0], length)

    def finish(self, ranked, length, last):
        """Merges the ended continuations among the best `width` of all into the finished hypotheses."""
        width, divisor = self.case["width"], length ** self.case["length_penalty"]
        ended = [
            (score / divisor, rank, (score / divisor, length, ids))
            for rank, (score, ids) in enumerate(ranked)
            if last or ids[-1] in self.case["eos_ids"]
        ]
        merged = self.finished + [hypothesis for _, rank, hypothesis in ended if rank < width]
        merged.sort(key=lambda hypothesis: -hypothesis[0])
        self.finished, dropped = merged[:width], merged[width:]
        full = len(self.finished) == width
        worst = self.finished[-1] if self.finished else None

        for score, rank, hypothesis in ended:
            edge = ranked[width if rank < width else width - 1][0] / divisor
            distance = abs(score - edge) * divisor
            # Where two conditions each refuse, both must flip: the further one counts.
            if full and hypothesis not in self.finished:
                refused = (worst[0] - score) * min(divisor, worst[1] ** self.case["length_penalty"])
                self.gap("rank" if rank >= width else "finished", max(distance if rank >= width else 0.0, refused))
            else:
                self.gap("rank", distance)
        for hypothesis in dropped:
            if hypothesis[1] < length:  # one that was finished before and has to go
                self.gap("finished", self.apart(worst, hypothesis))

    def apart(self, better, worse):
        penalty = self.case["length_penalty"]
        return (better[0] - worse[0]) * min(better[1] ** penalty, worse[1] ** penalty)

    def decide_stop(self, best_running, length):
        if len(self.finished) < self.case["width"]:
            return
        if self.case["early_stopping"] is True:
            self.stopped = True
            return
        penalty = self.case["length_penalty"]
        hopeful = self.case["early_stopping"] == "never" and penalty > 0
        divisor = (self.case["max_new_tokens"] if hopeful else length) ** penalty
        worst = self.finished[-1]
        difference = best_running / divisor - worst[0]
        self.gap("stop", abs(difference) * min(divisor, worst[1] ** penalty))
        self.stopped = difference <= 0

    def result(self):
        assert self.stopped and len(self.finished) == self.case["width"]
        for better, worse in zip(self.finished, self.finished[1:]):
            self.gap("order", self.apart(better, worse))
        return self.finished


def expected_processors(case):
    """No default of a generation configuration may slip in."""
    names = ["RepetitionPenaltyLogitsProcessor"] if "repetition_penalty" in case else []
    if "min_new_tokens" in case:
        names += ["MinLengthLogitsProcessor", "MinNewTokensLengthLogitsProcessor"]
    return sorted(names)


def run_generate(model, prompt_ids, case):
    """The output of `generate`, and the search that followed it."""
    config = GenerationConfig(
        do_sample=False,
        num_beams=case["width"],
        num_return_sequences=case["width"],
        max_new_tokens=case["max_new_tokens"],
        min_new_tokens=case.get("min_new_tokens"),
        length_penalty=case["length_penalty"],
        early_stopping=case["early_stopping"],
        repetition_penalty=case.get("repetition_penalty"),
        eos_token_id=case["eos_ids"],
        pad_token_id=case["eos_ids"][0],
        return_dict_in_generate=True,
        output_scores=True,
    )
    search = Search(case, len(prompt_ids))
    top_k, processors_of = model._get_top_k_continuations, model._get_logits_processor

    def watched_top_k(accumulated_log_probs, running_sequences, **rest):
        search.advance(accumulated_log_probs[0], running_sequences[0])
        return top_k(accumulated_log_probs=accumulated_log_probs, running_sequences=running_sequences, **rest)

    def watched_processors(*args, **kwargs):
        processors = processors_of(*args, **kwargs)
        assert sorted(type(each).__name__ for each in processors) == expected_processors(case), processors
        return processors

    model._get_top_k_continuations, model._get_logits_processor = watched_top_k, watched_processors
    try:
        prompt = torch.tensor([prompt_ids])
        out = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
    finally:
        del model._get_top_k_continuations, model._get_logits_processor
    return out, search


def total_alone(model, prompt_ids, ids, case):
    """The accumulated log-probability of `ids` from one forward pass, without cache and without search."""
    rows = log_probs(model, prompt_ids + ids)[len(prompt_ids) - 1 : -1]
    total, seen = 0.0, set(prompt_ids)
    for row, token in zip(rows, ids):
        value = row[token].item()
        total += value * case.get("repetition_penalty", 1.0) if token in seen else value
        seen.add(token)
    return total


def record(model, prompt, name, params):
    """One case, and how far its accumulated log-probabilities are from those of separate forward passes."""
    case = {"name": name, "prompt": prompt["name"], **params}
    out, search = run_generate(model, prompt["ids"], case)
    lengths = (out.beam_indices >= 0).sum(dim=1).tolist()
    start = len(prompt["ids"])
    sequences = [row[start : start + length].tolist() for row, length in zip(out.sequences, lengths)]
    scores = out.sequences_scores.tolist()

    again = search.result()
    assert [list(ids) for _, _, ids in again] == sequences, case
    assert all(abs(mine / theirs - 1) < 1e-6 for (mine, _, _), theirs in zip(again, scores)), case
    error = 0.0
    for ids, score in zip(sequences, scores):
        total = score * len(ids) ** case["length_penalty"]
        error = max(error, abs(total_alone(model, prompt["ids"], ids, case) - total))
    assert error < NEAR_TIE / 2, (case, error)

    gaps = {kind: [round(value, 5), step] for kind, (value, step) in sorted(search.gaps.items())}
    least = min(value for value, _ in gaps.values())
    found = {"sequences": sequences, "scores": [round(score, 6) for score in scores], "steps": search.step}
    return {**case, **found, "gaps": gaps, "min_gap": least, "near_tie": least < NEAR_TIE}, error


def encode(tokenizer, prompt):
    if prompt["kind"] == "chat":
        messages = prompt["messages"]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    else:
        text = prompt["text"]
    return {**prompt, "ids": tokenizer(text, add_special_tokens=False)["input_ids"]}


def cases_of(prompt, eos_ids):
    """(name, parameters) of each case of a prompt: all widths, then its variants."""
    base = {
        "max_new_tokens": 48 if prompt["kind"] == "chat" else 32,
        "length_penalty": 1.0,
        "early_stopping": False,
        "eos_ids": eos_ids,
    }
    name = prompt["name"]
    for width in WIDTHS:
        yield f"{name}/width={width}", {"width": width, **base}
    for prompts, change in VARIANTS:
        if name in prompts:
            changes = "".join(f"/{key}={value}" for key, value in change.items() if key != "width")
            params = {"width": 4, **base, **change}
            yield f"{name}/width={params['width']}{changes}", params


def write(path, head, prompts, cases):
    def line(value):
        return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))

    parts = [f" {line(key)}: {line(value)}" for key, value in head.items()]
    for key, rows in (("prompts", prompts), ("cases", cases)):
        parts.append(f" {line(key)}: [\n" + ",\n".join("  " + line(row) for row in rows) + "\n ]")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def main(gguf, output):
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    model, tokenizer = load(gguf)
    reference = json.loads(REFERENCE.read_text(encoding="utf-8"))
    print(f"weights: log-probabilities within {check_weights(model, reference):.1e} of the reference's")

    known = {row["prompt"]: row["prompt_ids"] for row in reference["greedy"]}
    prompts = [encode(tokenizer, prompt) for prompt in PROMPTS]
    for prompt in prompts:
        text = prompt.get("text") or prompt["messages"][-1]["content"]
        assert known.get(text, prompt["ids"]) == prompt["ids"], text

    cases, worst = [], 0.0
    for prompt in prompts:
        for name, params in cases_of(prompt, [tokenizer.eos_token_id]):
            case, error = record(model, prompt, name, params)
            cases.append(case)
            worst = max(worst, error)
            ended = sum(ids[-1] in case["eos_ids"] for ids in case["sequences"])
            print(f"{name:48} {ended} ended, {case['steps']} steps, {case['min_gap']}, {case['gaps']}", flush=True)
    print(f"accumulated log-probabilities: within {worst:.1e} of separate forward passes")
    print("near ties:", [case["name"] for case in cases if case["near_tie"]])

    head = {
        "model": gguf.name,
        "model_sha256": hashlib.sha256(gguf.read_bytes()).hexdigest(),
        "weights": "dequantised, rounded to bf16, run in float32",
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]},
        "eos_ids": [tokenizer.eos_token_id],
        "near_tie_below": NEAR_TIE,
    }
    write(output, head, prompts, cases)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python record_beams.py MODEL.gguf OUTPUT.json")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
