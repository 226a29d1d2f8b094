"""A stream continues elsewhere from its sinks and its reach, exactly, however long it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.models import ARCHITECTURES, make_tiny
from tests.reference import SinkReference
from vllm_sink import policy

SINKS, WINDOW = 4, 12


def _layers(arch: str) -> int:
    config = ARCHITECTURES[arch].config
    return next(config[n] for n in ("num_hidden_layers", "n_layer", "n_layers") if n in config)


@pytest.mark.parametrize("arch", ["llama-gqa", "gpt-neox", "bloom"])
def test_it_goes_on_from_its_sinks_and_its_reach(arch: str, tmp_path: Path) -> None:
    layers = _layers(arch)
    generator = torch.Generator().manual_seed(1)
    text: list[int] = torch.randint(7, 256, (300,), generator=generator).tolist()
    reference = SinkReference(make_tiny(arch, tmp_path / arch), SINKS, WINDOW)
    whole = reference.score(text)[-1]
    kept = policy.rebuild(text, SINKS, WINDOW, layers)
    assert len(kept) == SINKS + layers * (WINDOW - 1) + 1
    assert (reference.score(kept)[-1] - whole).abs().max() < 1e-4
    # One layer's reach less is not enough: the test can see it.
    short = policy.rebuild(text, SINKS, WINDOW, layers - 1)
    assert (reference.score(short)[-1] - whole).abs().max() > 1e-3


def test_a_short_stream_is_sent_whole() -> None:
    text = list(range(SINKS + policy.reach(WINDOW, 2)))
    assert policy.rebuild(text, SINKS, WINDOW, 2) == text
