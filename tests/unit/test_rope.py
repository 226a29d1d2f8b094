"""Exact angles, compared with vLLM's own tables where those are right, and with more digits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from vllm_sink.errors import UnsupportedError
from vllm_sink.rope.frequencies import frequencies
from vllm_sink.rope.phase import angles, units_per_token
from vllm_sink.rope.rotary import ExactRotary, rotate

SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
}


def _vllm_rope(scaling: dict[str, Any], neox: bool, partial: float) -> Any:
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.rotary_embedding import get_rope

    parameters = {"rope_theta": 10_000.0, "partial_rotary_factor": partial, **scaling}
    with set_current_vllm_config(VllmConfig()):
        return get_rope(
            64, max_position=256, is_neox_style=neox, rope_parameters=parameters, dtype=torch.float
        )


@pytest.mark.parametrize("partial", [1.0, 0.25])
@pytest.mark.parametrize("neox", [True, False])
@pytest.mark.parametrize("kind", SCALINGS)
def test_equals_vllms_table(kind: str, neox: bool, partial: float) -> None:
    """Inside the context, where float32 angles are good to 1e-5, both turn alike."""
    rope = _vllm_rope(SCALINGS[kind], neox, partial)
    exact = ExactRotary(frequencies(rope), rope.head_size, rope.is_neox_style)
    positions = torch.arange(250)
    query, key = torch.randn(250, 4 * 64), torch.randn(250, 2 * 64)
    expected = rope.forward_native(positions, query.clone(), key.clone())
    for told, right in zip(exact(positions, query, key), expected, strict=True):
        assert (told - right).abs().max() < 2e-4


def test_length_dependent_scaling_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="DynamicNTK"):
        frequencies(_vllm_rope({"rope_type": "dynamic", "factor": 2.0}, True, 1.0))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("index", [1, 8191, 1_000_003, 2**24 + 1, 2**31 + 7, 10**12 + 1])
def test_angles_are_exact_at_any_index(index: int, sign: int) -> None:
    """Against Python's exact integers and reduction by hand, far past where float32 can count."""
    index *= sign
    inv_freq = torch.tensor([1.0, 0.1234, 3e-5, 4.0], dtype=torch.float64)
    cos, sin = angles(torch.tensor([index]), units_per_token(inv_freq))
    for i, frequency in enumerate(inv_freq.tolist()):
        # The double is a fraction; the product is exact before it is reduced by 2 pi.
        numerator, denominator = frequency.as_integer_ratio()
        turns = _modulo_two_pi(index * numerator, denominator)
        assert float(cos[0, i]) == pytest.approx(math.cos(turns), abs=1e-6)
        assert float(sin[0, i]) == pytest.approx(math.sin(turns), abs=1e-6)


def _modulo_two_pi(numerator: int, denominator: int) -> float:
    from mpmath import mp, mpf  # torch's sympy brings it

    with mp.workdps(60):
        return float(mp.fmod(mpf(numerator) / denominator, 2 * mp.pi))


@pytest.mark.parametrize("neox", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_score_depends_on_distance_alone(neox: bool, dtype: torch.dtype) -> None:
    """What the policy rests on: key at j, query at t rotated back by e, scored by distance."""
    rope = _vllm_rope(SCALINGS["default"], neox, 1.0)
    exact = ExactRotary(frequencies(rope), 64, neox)
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 64, generator=generator).to(dtype)
    far, sink, near = 1_000_000, 2, 40

    def at(x: torch.Tensor, position: int) -> torch.Tensor:
        return exact(torch.tensor([position]), x)[0]

    stored = at(key, sink).float()
    turned = exact.turn_back(at(query, far)[:, None], torch.tensor([far - near]))[:, 0]
    score = (turned * stored).sum()
    right = (at(query.float(), near) * at(key.float(), sink)).sum()
    assert float(score) == pytest.approx(float(right), abs=2e-4 if dtype == torch.float32 else 0.15)


def test_rotation_keeps_length() -> None:
    x = torch.randn(5, 3, 64)
    units = units_per_token(torch.rand(16, dtype=torch.float64))
    cos, sin = angles(torch.arange(5) * 1_000_000_007, units)
    for neox in (True, False):
        turned = rotate(x, cos, sin, neox)
        assert turned[..., 32:].equal(x[..., 32:])
        assert turned.norm(dim=-1).sub(x.norm(dim=-1)).abs().max() < 1e-5
