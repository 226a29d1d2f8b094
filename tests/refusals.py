"""What each attention provider refuses; anything else that is refused is a regression."""

from __future__ import annotations

import torch

from vllm_sink.attention.providers import Traits

#: ``flash-2`` is ``flash`` made to call FlashAttention 2.
PROVIDERS = ("flash", "flash-2", "triton", "flash+triton", "xformers")

_FLASH = {"float32", "head size 256"}
_XFORMERS = {"ALiBi", "soft cap"}

#: By the major number of the compute capability: Ampere and Ada, Hopper.
REFUSED: dict[int, dict[str, set[str]]] = {
    8: {"flash": _FLASH, "triton": set(), "xformers": _XFORMERS},
    9: {"flash": _FLASH | {"ALiBi"}, "triton": set(), "xformers": _XFORMERS},
}


def is_refused(provider: str, traits: Traits) -> bool:
    """Whether a provider is listed to refuse a layer on this GPU.

    Raises:
        AssertionError: nothing is listed for this GPU.
    """
    assert traits.capability is not None
    major = traits.capability[0]
    assert major in REFUSED, f"list here what is refused on compute capability {major}.x"
    has = {
        "float32": traits.dtype == torch.float32,
        "head size 256": traits.head_size == 256,
        "ALiBi": traits.alibi,
        "soft cap": traits.soft_cap,
    }
    family = "flash" if provider.startswith("flash") else provider
    return any(has[trait] for trait in REFUSED[major][family])
