"""What is sent: schemathesis' cases of the server's schema, and edge values in good requests."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import schemathesis.openapi
from hypothesis.errors import NonInteractiveExampleWarning
from schemathesis.core import NotSet
from schemathesis.generation import GenerationMode

#: Where vLLM or torch counts in fewer bits than JSON.
INTEGERS = (-(1 << 63), -(1 << 31) - 1, -1, 0, 1, (1 << 31) - 1, 1 << 31, 1 << 53, (1 << 63) - 1)
FLOATS = (float("nan"), float("inf"), float("-inf"), -0.0, 1e-308, 1e308)
#: Every type of JSON, and strings that parsers stumble over.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1 << 64, 1 << 70, 1.5, "", "x", "system", "\ud800", "\x00",
    "a" * 5000, [], [1], [None], ["a", 1], {}, {"a": 1}, [[]], [{}],
)  # fmt: skip

#: Names that a client may try under ``vllm_xargs``; ``sink_tokens`` and ``endless`` are ours.
NAMES = (
    "sink_tokens", "sink_tenant", "sink_ticket", "Sink_Tokens", "num_sink_tokens", "sink_base",
    "attention_sink_size", "session_id", "kv_transfer_params", "diffusion_seed_canvas", "endless",
    "window_tokens", "other", "",
)  # fmt: skip

#: Fields that bound an answer; most requests set one, so that the fuzzer does not wait.
BOUNDS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


@dataclass(frozen=True)
class Case:
    """One request.

    Attributes:
        path: the route as the schema has it.
        url: the same with its parameters filled in.
        body: JSON, or None for none.
        fields: names of the fields with unusual values.
        source: what generated it.
    """

    path: str
    url: str
    body: Any
    source: str
    fields: tuple[str, ...] = ()
    headers: dict[str, str] = field(default_factory=dict)


def good_requests(model: str, vocabulary: int) -> dict[str, dict[str, Any]]:
    """A good request for each generating route."""
    tokens = [7 + i % (vocabulary - 10) for i in range(40)]
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    return {
        "/v1/completions": {"model": model, "prompt": tokens, "max_tokens": 4},
        "/v1/chat/completions": {"model": model, "messages": chat, "max_tokens": 4},
        "/v1/chat/completions/batch": {"model": model, "messages": [chat], "max_tokens": 4},
        "/v1/responses": {"model": model, "input": "Hello", "max_output_tokens": 16},
        "/v1/messages": {"model": model, "messages": chat[1:], "max_tokens": 4},
        "/inference/v1/generate": {"token_ids": tokens, "sampling_params": {"max_tokens": 4}},
        "/invocations": {"model": model, "prompt": tokens, "max_tokens": 4},
        "/v1/completions/render": {"model": model, "prompt": tokens, "max_tokens": 4},
        "/v1/chat/completions/render": {"model": model, "messages": chat},
        "/v1/messages/count_tokens": {"model": model, "messages": chat[1:]},
        "/tokenize": {"model": model, "prompt": "Hello"},
        "/detokenize": {"model": model, "tokens": tokens},
        "/generative_scoring": {
            "model": model,
            "query": "a",
            "items": ["b"],
            "label_token_ids": [7],
        },
    }


def _sampling_fields() -> tuple[str, ...]:
    from vllm import SamplingParams

    return tuple(n for n in SamplingParams.__struct_fields__ if not n.startswith("_"))


def _properties(schema: dict[str, Any], path: str) -> tuple[str, ...]:
    """Names of the fields of a route's body."""
    body = schema["paths"][path]["post"].get("requestBody", {}).get("content", {})
    found = body.get("application/json", {}).get("schema", {})
    if "$ref" in found:
        found = schema["components"]["schemas"][found["$ref"].rpartition("/")[2]]
    return tuple(found.get("properties", {}))


def edges(schema: dict[str, Any], model: str, vocabulary: int) -> Iterator[Case]:
    """Every field of every good request at every edge, every option's name with every value."""
    for path, good in good_requests(model, vocabulary).items():
        if path not in schema["paths"]:
            continue
        inner = path == "/inference/v1/generate"
        names = _sampling_fields() if inner else _properties(schema, path)
        for name in names:
            for value in (*INTEGERS, *FLOATS, *VALUES):
                yield _changed(path, good, ("sampling_params",) if inner else (), name, value)
        where = ("sampling_params", "extra_args") if inner else ("vllm_xargs",)
        for name in NAMES:
            for value in (*INTEGERS, *FLOATS, *VALUES):
                yield _changed(path, good, where, name, value)


def _changed(
    path: str, good: dict[str, Any], where: tuple[str, ...], name: str, value: Any
) -> Case:
    body = copy.deepcopy(good)
    inside = body
    for key in where:
        inside = inside.setdefault(key, {})
    inside[name] = value
    return Case(path, path, body, "edges", (".".join((*where, name)),))


def mixtures(
    schema: dict[str, Any], model: str, vocabulary: int, rng: random.Random
) -> Iterator[Case]:
    """Endlessly: two to four fields of a good request at edges, or as small numbers."""
    goods = {p: b for p, b in good_requests(model, vocabulary).items() if p in schema["paths"]}
    while True:
        path = rng.choice(list(goods))
        body = copy.deepcopy(goods[path])
        inner = path == "/inference/v1/generate"
        target = body["sampling_params"] if inner else body
        names = _sampling_fields() if inner else _properties(schema, path)
        chosen = rng.sample(names, min(len(names), rng.randint(2, 4)))
        for name in chosen:
            target[name] = _value(rng)
        if rng.random() < 0.3:
            key = "extra_args" if inner else "vllm_xargs"
            target[key] = {rng.choice(NAMES): _value(rng)}
            chosen.append(key)
        if rng.random() < 0.3:
            body["stream"] = True
        yield Case(path, path, bounded(body, rng), "mixtures", tuple(chosen))


def _value(rng: random.Random) -> Any:
    kind = rng.random()
    if kind < 0.4:
        return rng.choice((0, 1, 2, 3, 5, 20, 0.5, 1.0, True, False, None))
    return rng.choice((*INTEGERS, *FLOATS, *VALUES))


def from_schema(schema: dict[str, Any], seed: int) -> Iterator[Case]:
    """schemathesis' cases, valid and not, of every POST route in turn, endlessly."""
    loaded = schemathesis.openapi.from_dict(schema)
    operations = [o.ok() for o in loaded.get_all_operations()]
    posts = [o for o in operations if o.method.lower() == "post"]
    rng = random.Random(seed)
    turn = 0
    while True:
        rng.shuffle(posts)
        for operation in posts:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                turn += 1
                yield from _drawn(operation, mode, seed * 1_000_003 + turn, rng)


def _drawn(operation: Any, mode: GenerationMode, seed: int, rng: random.Random) -> list[Case]:
    """Some cases of one operation; none if its schema allows no input."""
    found: list[Case] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=8,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def draw(case: Any) -> None:
        body = None if isinstance(case.body, NotSet) else case.body
        if isinstance(body, bytes):
            body = body.decode("latin-1")
        if isinstance(body, dict):
            body = bounded(dict(body), rng)
        found.append(Case(operation.path, case.formatted_path, body, f"schema, {mode.value}"))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NonInteractiveExampleWarning)
        try:
            draw()
        except (hypothesis.errors.HypothesisException, schemathesis.errors.SchemathesisError):
            return found  # for example unsatisfiable: a route without a body has no invalid one
    return found


def bounded(body: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Mostly with an answer that ends soon."""
    if rng.random() < 0.85:
        for name in BOUNDS:
            if name in body and isinstance(body[name], int) and body[name] > 8:
                body[name] = 8
        if "messages" in body or "prompt" in body:
            body.setdefault("max_tokens", 8)
        if "input" in body:
            body.setdefault("max_output_tokens", 8)
    return body
