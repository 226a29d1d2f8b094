"""Every provider against the policy's rules, on random batches: decode and prefill mixed."""

from __future__ import annotations

import random
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from tests.paged import BATCHES, SHAPES, Batch, Row, Shape, batch_of, expected
from tests.refusals import PROVIDERS, is_refused

pytestmark = pytest.mark.gpu

#: bf16 keeps 8 bits of the softmax's weights and of the result.
BOUNDS = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def run(provider: str, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor | None:
    """The output of a provider; None where it refuses a batch that it is listed to refuse."""
    from vllm_sink.attention import flash_provider, provider_factory, providers
    from vllm_sink.attention.flash_plan import FlashPlan, FlashShape
    from vllm_sink.errors import UnsupportedError

    layer, dtype, step = batch.layer, batch.query.dtype, batch.step
    name = provider
    if provider == "flash-2":
        name = "flash"
        monkeypatch.setattr(flash_provider, "flash_version", lambda *_: 2)
        monkeypatch.setattr("vllm_sink.attention.flash_plan.flash_version", lambda *_: 2)
    if provider == "xformers" and find_spec("xformers") is None:
        pytest.skip("xformers is not installed")
    traits = providers.Traits(
        torch.cuda.get_device_capability(),
        dtype,
        layer.head_size,
        step.block_size,
        layer.alibi_slopes is not None,
        layer.soft_cap > 0,
    )
    requested = "flash" if name == "flash+triton" else name
    if is_refused(provider, traits):
        with pytest.raises(UnsupportedError):
            providers.choose(requested, traits)
        return None
    providers.choose(requested, traits)
    made = provider_factory.make(name, layer, dtype)
    assert made is not None
    if providers.needs_compact_tables(name):
        window = layer.window_tokens
        alibi = layer.alibi_slopes is not None
        shape = FlashShape(
            provider=name,
            window_tokens=window,
            uniform_window=0 if alibi else window,
            num_heads=layer.num_heads,
            num_kv_heads=layer.num_kv_heads,
            head_size=layer.head_size,
            block_size=step.block_size,
            dtype=dtype,
            rows=step.num_reqs,
            tokens=step.num_tokens,
            graph_tokens=0,
            graph_splits=32,
        )
        FlashPlan(shape, batch.query.device).fill(step)
    output = torch.full_like(batch.query, torch.nan)
    made.attend(step, batch.query, batch.key_cache, batch.value_cache, output)
    return output


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("rows", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_equals_the_rules(
    provider: str,
    dtype: torch.dtype,
    rows: tuple[Row, ...],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    padding = 0 if provider == "xformers" else 2
    batch = batch_of(SHAPES[name], rows, dtype, "cuda", padding=padding)
    output = run(provider, batch, monkeypatch)
    assert output is None or (output.double().cpu() - expected(batch)).abs().max() < BOUNDS[dtype]


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("provider", PROVIDERS)
def test_random_batches(provider: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(seed)
    kv_heads = draw.choice([1, 2, 3, 8])
    group = draw.choice([1, 2, 3, 4, 5, 7, 8])
    shape = Shape(
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_size=draw.choice([64, 80, 96, 128, 192, 256]),
        window=draw.choice([1, 17, 64, 100, 509, 1024]),
        block_size=draw.choice([16, 32, 64]),
    )
    rows = []
    for _ in range(draw.randint(1, 12)):
        length = draw.randint(1, draw.choice([20, 300, 3000]))
        count = draw.choice([1, 1, 1, draw.randint(1, min(length, 400))])
        sinks = draw.choice([0, 1, 4, draw.randint(0, 400)])
        base = draw.choice([0, 0, draw.randint(0, 10**9)])
        # Every second batch has requests with a window of their own.
        window = draw.choice([None, draw.randint(1, shape.window)]) if seed % 2 else None
        rows.append(Row(sinks, length, count, base, window))
    if draw.random() < 0.4:
        rows = [replace(row, count=1) for row in rows]
    # A rolled stream is past its window, and its sinks are before it.
    rows = [
        replace(row, base=0) if row.length < row.sinks + shape.window + row.count else row
        for row in rows
    ]
    batch = batch_of(shape, tuple(rows), torch.bfloat16, "cuda", seed=seed)
    output = run(provider, batch, monkeypatch)
    assert (
        output is None
        or (output.double().cpu() - expected(batch)).abs().max() < BOUNDS[torch.bfloat16]
    )
