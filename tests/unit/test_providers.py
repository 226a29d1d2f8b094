"""The fused CPU kernel computes what plain tensors do; providers refuse what is listed, no more."""

from __future__ import annotations

import pytest
import torch

from tests.paged import SHAPES
from tests.refusals import PROVIDERS, REFUSED, is_refused
from vllm_sink.attention import cpu_kernel, providers, torch_provider
from vllm_sink.attention.layer import LayerParams
from vllm_sink.attention.tiles import Tile
from vllm_sink.errors import UnsupportedError
from vllm_sink.rope.frequencies import Frequencies
from vllm_sink.rope.rotary import ExactRotary

SIZE, SLOTS = 32, 4096


def _layer(heads: int, kv_heads: int, window: int) -> LayerParams:
    inv_freq = 10_000.0 ** -(torch.arange(0, SIZE, 2, dtype=torch.float64) / SIZE)
    rotary = ExactRotary(Frequencies(inv_freq, 1.0), SIZE, is_neox_style=True)
    return LayerParams(heads, kv_heads, SIZE, SIZE**-0.5, window, True, rotary=rotary)


def _tile(runs: int, queries: int, window: int, sinks: int, first: int) -> Tile:
    """Runs of one stream, from index ``first`` on."""
    query = first + torch.arange(runs * queries).view(runs, queries)
    index = query[:, -1:] - torch.arange(window + queries - 2, -1, -1)
    distance = query[:, :, None] - index[:, None]
    distance.masked_fill_((index < 0)[:, None], -1)
    position = query.clamp(max=sinks + window - 1)
    sink = torch.arange(sinks)
    return Tile(
        torch.arange(runs * queries).view(runs, queries),
        torch.randint(0, SLOTS, index.shape),
        distance,
        window,
        torch.randint(0, SLOTS, (runs, sinks)),
        sink <= query[:, :, None] - window,
        query - position,
        position[:, :, None] - sink,
    )


@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (6, 1)])
@pytest.mark.parametrize("queries", [1, 7, 64])
@pytest.mark.parametrize("sinks", [1, 4, 33])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-2)])
def test_fused_equals_plain(
    heads: tuple[int, int], queries: int, sinks: int, dtype: torch.dtype, bound: float
) -> None:
    window = 50
    torch.manual_seed(0)
    layer = _layer(*heads, window)
    # From before the sinks leave the window to far beyond: the staircase lies in between.
    tile = _tile(5, queries, window, sinks, first=window - 3)
    query = torch.randn(5 * queries, heads[0], SIZE).to(dtype)
    cache = torch.randn(SLOTS, heads[1], 2 * SIZE).to(dtype)
    assert cpu_kernel.usable(layer, query)
    fused = cpu_kernel.attend(layer, tile, query[tile.queries], cache)
    plain = torch_provider._attend(layer, tile, query[tile.queries], cache)
    assert fused.dtype == dtype
    assert (fused.float() - plain).abs().max() < bound


@pytest.mark.parametrize("major", REFUSED)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_refuses_what_is_listed(provider: str, major: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what is known without a GPU; tests/gpu/test_providers.py holds the same list on one."""
    monkeypatch.setattr(providers, "find_spec", lambda name: name)  # xformers need not be here
    requested = "flash" if provider.startswith("flash") else provider
    refused = set()
    for name, shape in SHAPES.items():
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            traits = providers.Traits(
                (major, 0),
                dtype,
                shape.head_size,
                shape.block_size,
                shape.alibi,
                shape.soft_cap > 0,
            )
            try:
                providers.choose(requested, traits)
            except UnsupportedError:
                refused.add((name, dtype))
            assert ((name, dtype) in refused) == is_refused(provider, traits), (name, dtype)
    assert bool(refused) == bool(provider != "triton")
