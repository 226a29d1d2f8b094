"""The CPU's decode kernel computes what plain tensors do, and is optional."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vllm_sink.attention import cpu_decode, torch_provider
from vllm_sink.attention.layer import LayerParams
from vllm_sink.attention.tiles import Tile
from vllm_sink.rope.frequencies import Frequencies
from vllm_sink.rope.rotary import ExactRotary

SLOTS, WINDOW = 2048, 50
DTYPES = [(torch.float32, 2e-5), (torch.bfloat16, 1e-2)]


def _rotary(size: int, pairs: int, neox: bool) -> ExactRotary:
    inv_freq = 10_000.0 ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
    return ExactRotary(Frequencies(inv_freq, 1.0), size, neox)


def _tile(sinks: int | None) -> Tile:
    """Streams from shorter than the window to far past it, with tokens of others between them."""
    last = torch.tensor([9, WINDOW - 1, WINDOW, WINDOW + 2, 5_000, 10**9])
    low = (last - (WINDOW - 1)).clamp(min=0)
    index = low[:, None] + torch.arange(WINDOW)
    distance = last[:, None, None] - index[:, None]
    tile = Tile(
        torch.tensor([[0], [3], [4], [7], [5], [9]]),
        torch.randint(0, SLOTS, index.shape),
        distance,
        WINDOW,
    )
    if sinks:
        position = last.clamp(max=sinks + WINDOW - 1)[:, None]
        tile.sink_slots = torch.randint(0, SLOTS, (len(last), sinks))
        tile.sink_visible = torch.arange(sinks) <= last[:, None, None] - WINDOW
        tile.evicted = last[:, None] - position
        tile.sink_distance = position[:, :, None] - torch.arange(sinks)
    return tile


@pytest.mark.parametrize("heads", [(4, 4), (9, 3), (6, 1)])
@pytest.mark.parametrize("size", [32, 64, 80, 128])
@pytest.mark.parametrize("sinks", [None, 1, 4, 33])
@pytest.mark.parametrize("style", ["neox", "gptj", "part of a head", "no rotary module"])
@pytest.mark.parametrize(("dtype", "bound"), DTYPES)
def test_equals_plain_tensors(
    heads: tuple[int, int],
    size: int,
    sinks: int | None,
    style: str,
    dtype: torch.dtype,
    bound: float,
) -> None:
    if cpu_decode.kernel() is None:
        pytest.skip("this machine has no C++ compiler")
    torch.manual_seed(0)
    pairs = size // 8 if style == "part of a head" else size // 2
    rotary = None if style == "no rotary module" else _rotary(size, pairs, style != "gptj")
    layer = LayerParams(*heads, size, size**-0.5, WINDOW, True, rotary=rotary)
    _check(layer, _tile(sinks), dtype, bound)


@pytest.mark.parametrize(("dtype", "bound"), DTYPES)
def test_a_layer_with_a_window_of_its_own(dtype: torch.dtype, bound: float) -> None:
    if cpu_decode.kernel() is None:
        pytest.skip("this machine has no C++ compiler")
    torch.manual_seed(1)
    layer = LayerParams(8, 2, 64, 0.125, WINDOW // 2, False, rotary=_rotary(64, 32, True))
    _check(layer, _tile(4), dtype, bound)


def _check(layer: LayerParams, tile: Tile, dtype: torch.dtype, bound: float) -> None:
    # Queries as vLLM gives them: a part of a wider row.
    wide = torch.randn(12, layer.num_heads * layer.head_size + 24).to(dtype)
    query = wide[:, : layer.num_heads * layer.head_size]
    query = query.view(12, layer.num_heads, layer.head_size)
    cache = torch.randn(SLOTS, layer.num_kv_heads, 2 * layer.head_size).to(dtype)
    output = torch.full((12, layer.num_heads, layer.head_size), 7.0, dtype=dtype)
    for _ in range(2):  # the second time with what the first has computed
        assert cpu_decode.attend(layer, tile, query, cache, output)
    plain = torch_provider._attend(layer, tile, query[tile.queries].float(), cache.float())
    assert (output[tile.queries].float() - plain).abs().max() < bound
    others = torch.ones(12, dtype=torch.bool)
    others[tile.queries] = False
    assert (output[others] == 7.0).all()


def test_other_types_are_left_to_torch() -> None:
    layer = LayerParams(4, 4, 32, 0.2, WINDOW, True, rotary=_rotary(32, 16, True))
    query = torch.zeros(12, 4, 32, dtype=torch.float16)
    cache = torch.zeros(SLOTS, 4, 64, dtype=torch.float16)
    assert not cpu_decode.attend(layer, _tile(4), query, cache, query.clone())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_hidden_may_hold_anything(dtype: torch.dtype) -> None:
    """A slot that was never written: its NaN is not weighted by zero, it is not read."""
    if cpu_decode.kernel() is None:
        pytest.skip("this machine has no C++ compiler")
    layer = LayerParams(4, 2, 64, 0.125, WINDOW, False)
    seen, keys = 7, 20
    distance = torch.arange(keys).flip(0) - (keys - seen)
    tile = Tile(torch.tensor([[1]]), torch.arange(keys)[None], distance[None, None], WINDOW)
    assert int(tile.visible(WINDOW).sum()) == seen
    cache = torch.randn(keys, 2, 128).to(dtype)
    cache[seen:] = float("nan")
    query = torch.randn(3, 4, 64).to(dtype)
    output = torch.zeros_like(query)
    assert cpu_decode.attend(layer, tile, query, cache, output)
    short = Tile(tile.queries, tile.window_slots[:, :seen], tile.distance[:, :, :seen], WINDOW)
    plain = torch_provider._attend(layer, short, query[tile.queries].float(), cache.float())
    assert (output[1].float() - plain[0, 0]).abs().max() < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_keys_and_values_are_stored_where_they_belong(dtype: torch.dtype) -> None:
    if cpu_decode.kernel() is None:
        pytest.skip("this machine has no C++ compiler")
    # As vLLM gives them: parts of wider rows, with a row of padding at the end.
    wide = torch.randn(5, 3 * 2 * 48 + 7).to(dtype)
    key, value = wide[:, :96].view(5, 2, 48), wide[:, 100:196].view(5, 2, 48)
    cache = torch.zeros(9, 2, 96, dtype=dtype)
    assert cpu_decode.store(key, value, cache, torch.tensor([7, -1, 0, 3]))
    expected = torch.zeros_like(cache)
    for token, slot in ((0, 7), (2, 0), (3, 3)):
        expected[slot] = torch.cat((key[token], value[token]), -1)
    assert torch.equal(cache, expected)


def test_another_type_of_cache_is_left_to_torch() -> None:
    key = torch.zeros(1, 2, 16)
    cache = torch.zeros(4, 2, 32, dtype=torch.bfloat16)
    assert not cpu_decode.store(key, key, cache, torch.tensor([0]))


SCRIPT = "from vllm_sink.attention import cpu_decode; print(cpu_decode.kernel())"


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"CXX": "/bin/false"}, "was not compiled, torch's is used"),
        ({"VLLM_CACHE_ROOT": "/proc/nowhere"}, "was not compiled, torch's is used"),
        ({"SINK_CPU_KERNEL": "0"}, ""),
    ],
    ids=["no compiler", "nowhere to put it", "not wanted"],
)
def test_done_without(told: dict[str, str], said: str, tmp_path: Path) -> None:
    env = {**os.environ, "VLLM_CACHE_ROOT": str(tmp_path), **told}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().splitlines()[-1] == "None"
    assert said in done.stdout + done.stderr
