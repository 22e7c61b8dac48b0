"""The server through the official OpenAI client, as its users reach it.

Needs a running server with the default model, and the packages of requirements.txt:

    cargo run --release -- serve --dtype f32 --port 8000
    PAGELOOM_BASE_URL=http://127.0.0.1:8000 python -m pytest server/tests/openai_client.py

The model's answers are compared with model-runner/tests/fixtures/smollm2.json, which transformers computed
in float32.
"""

import asyncio
import json
import os
import statistics
import time
import urllib.error
import urllib.request
from pathlib import Path

import openai
import pytest

BASE = os.environ.get("PAGELOOM_BASE_URL", "http://127.0.0.1:8000").rstrip("/")
FIXTURE = Path(__file__).resolve().parents[2] / "model-runner/tests/fixtures/smollm2.json"
# At a step where the two best logits are closer than this, another right implementation may part.
CLOSE_CALL = 0.05
NUM_CLIENTS = 200
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
METRICS = [
    "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries", "prefix_cache_hits",
    "num_preemptions", "prompt_tokens", "generation_tokens", "request_success", "time_to_first_token_seconds",
    "inter_token_latency_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds",
    "request_prefill_time_seconds", "request_decode_time_seconds", "iteration_tokens_total", "cache_config_info",
]


@pytest.fixture(scope="session")
def client():
    # No retries: a failure that a second try would hide is a failure.
    return openai.OpenAI(base_url=f"{BASE}/v1", api_key="none", max_retries=0, timeout=300)


@pytest.fixture(scope="session")
def model(client):
    return client.models.list().data[0].id


@pytest.fixture(scope="session")
def fixture():
    return json.loads(FIXTURE.read_text())


def http(path, body=None, method=None):
    """Status and text of a request without the client; `body` is bytes, or something to send as JSON."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    headers = {} if data is None else {"content-type": "application/json"}
    request = urllib.request.Request(BASE + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def metric_lines():
    return [line for line in http("/metrics")[1].splitlines() if line and not line.startswith("#")]


def metric(name):
    """Sum of a metric over its labels; counters end in _total."""
    values = [
        float(line.rsplit(" ", 1)[1]) for line in metric_lines() if line.split("{")[0].split(" ")[0] == f"vllm:{name}"
    ]
    assert values, f"no metric {name}"
    return sum(values)


def assert_idle():
    """Blocks are free within a step of the last request's end; ten seconds forgive a slow machine."""
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    deadline = time.monotonic() + 10
    while any(left := {name: metric(name) for name in names}.values()):
        assert time.monotonic() < deadline, f"not idle: {left}"
        time.sleep(0.05)


def alive(client, model):
    """A request that must work whatever was sent before it."""
    answer = client.completions.create(model=model, prompt="The capital of France is", max_tokens=1, temperature=0)
    assert answer.choices[0].text == " Paris"


# ---------------------------------------------------------------- answers


def test_models_are_listed(client, model):
    listed = client.models.list().data
    assert [m.object for m in listed] == ["model"] * len(listed)
    assert client.models.retrieve(model).id == model


def test_chat_answers(client, model):
    answer = client.chat.completions.create(model=model, messages=FRANCE, temperature=0)
    assert answer.object == "chat.completion" and answer.model == model
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content == "The capital of France is Paris."
    assert choice.finish_reason == "stop"
    assert answer.usage.prompt_tokens == 37
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_chat_streams_what_it_answers(client, model):
    ask = dict(model=model, messages=[{"role": "user", "content": "Write a haiku about the sea."}], temperature=0)
    whole = client.chat.completions.create(**ask)
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert {c.object for c in chunks} == {"chat.completion.chunk"} and len({c.id for c in chunks}) == 1
    *pieces, last = chunks
    assert last.choices == [] and last.usage.completion_tokens == whole.usage.completion_tokens
    assert last.usage.total_tokens == whole.usage.total_tokens == 38 + whole.usage.completion_tokens
    assert pieces[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in pieces)
    assert text == whole.choices[0].message.content
    assert len(pieces) > 10, "came in one piece"
    reasons = [c.choices[0].finish_reason for c in pieces]
    assert reasons[-1] == "stop" and set(reasons[:-1]) == {None}


def test_completion_streams_what_it_answers(client, model):
    # Asks for characters of several tokens each: none may be cut in a stream.
    for prompt in ["Once upon a time", "日本の首都は東京です。フランスの首都は", "Emojis: 🙂🎉🚀🙂🎉🚀🙂"]:
        ask = dict(model=model, prompt=prompt, max_tokens=40, temperature=0)
        whole = client.completions.create(**ask)
        pieces = [c.choices[0].text for c in client.completions.create(**ask, stream=True)]
        assert "".join(pieces) == whole.choices[0].text
        assert whole.usage.completion_tokens <= 40


def test_every_form_of_prompt_gives_its_choices(client, model):
    ids = json.loads(http("/tokenize", {"model": model, "prompt": "The capital of France is"})[1])["tokens"]
    for prompt, expected in [
        ("The capital of France is", 1), (["The capital of France is"], 1), (ids, 1), ([ids, ids], 2),
        (["The capital of France is", "1, 2, 3, 4,"], 2),
    ]:
        answer = client.completions.create(model=model, prompt=prompt, max_tokens=2, temperature=0)
        assert [c.index for c in answer.choices] == list(range(expected))
        assert answer.choices[0].text == " Paris."


def test_stop_strings_end_the_text(client, model):
    ask = dict(model=model, prompt="1, 2, 3, 4, 5,", max_tokens=60, temperature=0, stop=[" 8,"])
    whole = client.completions.create(**ask)
    assert whole.choices[0].text == " 6, 7," and whole.choices[0].finish_reason == "stop"
    streamed = "".join(c.choices[0].text for c in client.completions.create(**ask, stream=True))
    assert streamed == whole.choices[0].text


def test_max_tokens_ends_the_text(client, model):
    answer = client.completions.create(model=model, prompt="Once", max_tokens=5, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 5 and answer.choices[0].finish_reason == "length"


def test_a_seed_repeats_and_choices_differ(client, model):
    def texts(seed):
        answer = client.completions.create(model=model, prompt="My favourite", max_tokens=16, seed=seed, n=3)
        return [c.text for c in answer.choices]

    assert texts(1) == texts(1) != texts(2)
    assert len(set(texts(1))) == 3


def test_best_of_returns_the_likeliest_samples(client, model):
    ask = dict(model=model, prompt="My favourite", max_tokens=16, seed=3, logprobs=0)
    samples = client.completions.create(**ask, n=6).choices
    samples.sort(key=lambda c: -statistics.mean(c.logprobs.token_logprobs))
    answer = client.completions.create(**ask, n=2, best_of=6)
    assert [c.text for c in answer.choices] == [c.text for c in samples[:2]]
    for choice, sample in zip(answer.choices, samples):
        assert choice.score == pytest.approx(statistics.mean(sample.logprobs.token_logprobs), abs=1e-4)
    assert answer.usage.completion_tokens == sum(len(c.logprobs.tokens) for c in answer.choices)
    assert client.completions.create(**ask).choices[0].model_extra.get("score") is None
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(**ask, n=2, best_of=6, stream=True)
    assert error.value.param == "best_of"


def test_beams_are_likelier_than_the_greedy_answer(client, model):
    ask = dict(model=model, prompt="The best thing about the sea is", max_tokens=12, temperature=0, logprobs=0)
    greedy = client.completions.create(**ask).choices[0]
    wide = {"use_beam_search": True}
    one = client.completions.create(**ask, extra_body=wide).choices[0]
    assert one.text == greedy.text
    beams = client.completions.create(**ask, n=4, extra_body=wide).choices
    assert len({c.text for c in beams}) == 4
    assert [c.score for c in beams] == sorted((c.score for c in beams), reverse=True)
    for choice in beams:
        assert choice.score == pytest.approx(statistics.mean(choice.logprobs.token_logprobs), abs=1e-3)
    assert beams[0].score >= one.score
    best = client.completions.create(**ask, n=1, best_of=4, extra_body=wide).choices
    assert [c.text for c in best] == [beams[0].text]
    longest = client.completions.create(**ask, extra_body=wide | {"length_penalty": 0.0, "early_stopping": "never"})
    assert longest.choices[0].score == pytest.approx(sum(greedy.logprobs.token_logprobs), abs=1e-3)


def test_a_chat_streams_its_beams(client, model):
    ask = dict(model=model, messages=FRANCE, temperature=0, n=3, max_tokens=24, extra_body={"use_beam_search": True})
    whole = client.chat.completions.create(**ask)
    assert whole.choices[0].message.content == "The capital of France is Paris."
    chunks = [c for chunk in client.chat.completions.create(**ask, stream=True) for c in chunk.choices]
    for choice in whole.choices:
        first, *rest = [c for c in chunks if c.index == choice.index]
        assert first.delta.role == "assistant"
        assert "".join(c.delta.content or "" for c in rest) == choice.message.content
        assert (rest[-1].finish_reason, rest[-1].score) == (choice.finish_reason, choice.score)


def test_a_second_request_finds_the_first_ones_blocks(client, model):
    ask = dict(model=model, prompt="Tell me about the number %d. " % time.time_ns() * 8, max_tokens=1)
    first, second = (client.completions.create(**ask).usage for _ in range(2))
    # The block size is 16, and one token is computed in any case.
    assert second.prompt_tokens_details.cached_tokens == (second.prompt_tokens - 1) // 16 * 16
    assert first.prompt_tokens_details.cached_tokens < second.prompt_tokens_details.cached_tokens


def test_chat_logprobs(client, model):
    answer = client.chat.completions.create(
        model=model, messages=FRANCE, temperature=0, logprobs=True, top_logprobs=3, max_completion_tokens=4)
    content = answer.choices[0].logprobs.content
    assert "".join(t.token for t in content) == answer.choices[0].message.content
    for token in content:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token and token.logprob == token.top_logprobs[0].logprob <= 0
        assert token.logprob > token.top_logprobs[1].logprob > token.top_logprobs[2].logprob


def test_tokens_go_there_and_back(client, model):
    for text in ["Hello world", "naïve 日本語 🙂", "  two  spaces\n\n"]:
        tokens = json.loads(http("/tokenize", {"model": model, "prompt": text})[1])
        assert tokens["count"] == len(tokens["tokens"])
        back = json.loads(http("/detokenize", {"model": model, "tokens": tokens["tokens"]})[1])
        assert back["prompt"] == text


# ---------------------------------------------------------------- against the references


def test_greedy_rows_equal_the_references(client, model, fixture):
    num_compared = 0
    for row in fixture["greedy"]:
        ask = dict(model=model, temperature=0, max_tokens=48, extra_body={"return_token_ids": True})
        if row["kind"] == "chat":
            messages = [{"role": "user", "content": row["prompt"]}]
            answer = client.chat.completions.create(messages=messages, **ask).model_dump()
        else:
            answer = client.completions.create(prompt=row["prompt"], **ask).model_dump()
        assert answer["usage"]["prompt_tokens"] == len(row["prompt_ids"])
        ids = answer["choices"][0]["token_ids"]
        sure = next((i for i, gap in enumerate(row["gap"]) if gap < CLOSE_CALL), len(row["gap"]))
        assert ids[:sure] == row["output_ids"][:sure], row["prompt"]
        num_compared += sure
    assert num_compared > 300


def test_scores_equal_the_references(client, model, fixture):
    differences = []
    for row in fixture["score"]:
        answer = client.completions.create(
            model=model, prompt=row["ids"], echo=True, logprobs=5, max_tokens=1, temperature=0)
        found = answer.choices[0].logprobs.token_logprobs
        assert found[0] is None and len(found) == len(row["ids"]) + 1
        differences += [abs(a - b) for a, b in zip(found[1:-1], row["logprob"], strict=True)]
    assert len(differences) > 2000
    print(f"mean difference {statistics.mean(differences):.2e}, largest {max(differences):.2e}")
    assert statistics.mean(differences) <= 2e-3


def test_a_cached_prefix_changes_no_score(client, model, fixture):
    ask = dict(model=model, prompt=fixture["score"][0]["ids"], echo=True, logprobs=2, max_tokens=4, temperature=0)
    first = client.completions.create(**ask)
    # Without echo the blocks of the same prompt are found again.
    before = metric("prefix_cache_hits_total")
    client.completions.create(model=model, prompt=ask["prompt"], max_tokens=1)
    assert metric("prefix_cache_hits_total") > before
    assert client.completions.create(**ask).choices == first.choices


# ---------------------------------------------------------------- bad input

BAD_FIELDS = [
    ("temperature", float("1e9")), ("temperature", -1), ("temperature", "hot"), ("top_p", 0), ("top_p", 1.5),
    ("n", 0), ("n", 10**9), ("n", 2.5), ("max_tokens", -1), ("max_tokens", 10**9), ("max_tokens", 2**70),
    ("presence_penalty", 3), ("frequency_penalty", [1]), ("logprobs", 21), ("logit_bias", {"999999999": 1}),
    ("stop", 7), ("prompt", {}), ("prompt", ""), ("prompt", [999_999_999]), ("prompt", [1.5]), ("suffix", "end"),
    ("seed", "x"), ("stream", "yes"), ("min_tokens", 10**12), ("allowed_token_ids", [-1]), ("best_of", 0),
    ("best_of", 10**9), ("no_such_field", 1), ("use_beam_search", "yes"), ("length_penalty", 2), ("early_stopping", True),
]


@pytest.mark.parametrize("field, value", BAD_FIELDS, ids=[f"{f}={str(v)[:20]}" for f, v in BAD_FIELDS])
def test_a_bad_field_is_refused_by_name(client, model, field, value):
    body = {"model": model, "prompt": "hi", "max_tokens": 2, "temperature": 0.5} | {field: value}
    status, text = http("/v1/completions", body)
    assert status == 400, text
    error = json.loads(text)["error"]
    assert error["type"] == "BadRequestError" and error["code"] == 400
    assert error["param"] == field and field in error["message"]
    alive(client, model)


@pytest.mark.parametrize("body", [b"", b"{", b"nonsense", b"[]", b'{"prompt": "\xff"}', b"[" * 100_000, b"null"])
def test_a_body_that_is_no_request_is_refused(client, model, body):
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
        status, text = http(path, body, method="POST")
        assert status in (400, 415, 422), text
        assert json.loads(text)["error"]["message"]
    alive(client, model)


def test_a_body_of_100_megabytes_is_refused(client, model):
    status, text = http("/v1/completions", b'{"prompt": "' + b"a" * 100_000_000 + b'"}')
    assert status == 413 and json.loads(text)["error"]["code"] == 413
    alive(client, model)


def test_errors_arrive_as_the_clients_exceptions(client, model):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=model, messages=FRANCE, temperature=7)
    assert error.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="no-such-model", messages=FRANCE)
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model=model, prompt="word " * 20_000)
    assert error.value.param == "prompt"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=model, messages=[])
    assert http("/no/such/path")[0] == 404
    assert http("/v1/completions")[0] == 405
    alive(client, model)


# ---------------------------------------------------------------- many at once


def crowd_request(model, i):
    """One of eight requests that differ in everything that could leak from one to another."""
    kind = i % 8
    prompts = ["Once upon a time", "The sea", "def main():", "Dear Sir,", "List: 1,", "Why", "In 1969,", "Bonjour"]
    special = [
        {"temperature": 0}, {"seed": 5}, {"seed": 6, "top_p": 0.8}, {"seed": 7, "presence_penalty": 1.5},
        {"temperature": 0, "logit_bias": {"30": -100}}, {"seed": 8, "frequency_penalty": 1.0},
        {"seed": 9, "extra": {"top_k": 3}}, {"seed": 10, "extra": {"min_p": 0.2, "repetition_penalty": 1.3}},
    ][kind]
    extra = {"ignore_eos": True} | special.get("extra", {})
    fields = {k: v for k, v in special.items() if k != "extra"}
    return dict(model=model, prompt=prompts[kind] * (1 + 9 * (kind % 2)), max_tokens=24, extra_body=extra, **fields)


async def crowd_member(client, model, i):
    """Text of client `i`, or None if it is one of the third that leaves: after i % 5 pieces."""
    stream = await client.completions.create(**crowd_request(model, i), stream=True)
    text, leaves_after = "", i // 3 % 5 if i % 3 == 0 else None
    num_pieces = 0
    async for chunk in stream:
        if num_pieces == leaves_after:
            await stream.close()
            return None
        text += chunk.choices[0].text
        num_pieces += 1
    return text


async def crowd(model):
    async with openai.AsyncOpenAI(base_url=f"{BASE}/v1", api_key="none", max_retries=0, timeout=600) as client:
        return await asyncio.gather(*(crowd_member(client, model, i) for i in range(NUM_CLIENTS)))


def test_200_streams_of_which_a_third_leave_change_nothing_and_leave_nothing(client, model):
    alone = [client.completions.create(**crowd_request(model, i)).choices[0].text for i in range(8)]
    texts = asyncio.run(crowd(model))
    assert_idle()
    assert sum(text is None for text in texts) == len(range(0, NUM_CLIENTS, 3))
    for i, text in enumerate(texts):
        assert text in (None, alone[i % 8]), f"client {i}"
    alive(client, model)


def test_metrics_have_the_names_that_dashboards_read(client, model):
    alive(client, model)
    text = http("/metrics")[1]
    missing = [name for name in METRICS if f"vllm:{name}" not in text]
    assert not missing
    assert metric("generation_tokens_total") > 0
    assert f'model_name="{model}"' in text


def test_what_clients_send_adds_no_series(client, model):
    num_series = len(metric_lines())
    for i in range(50):
        http(f"/v1/nowhere/{i}")
        http(f"/v1/models/{i}")
        http("/v1/completions", {"model": f"m{i}", "prompt": "x"})
        http("/health", method=f"VERB{i}")
    assert len(metric_lines()) == num_series


def test_health_and_version():
    assert http("/health")[0] == 200
    assert json.loads(http("/version")[1])["version"]
    assert_idle()
