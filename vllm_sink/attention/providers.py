"""Which provider computes attention: what each can do, and what ``auto`` chooses.

Several ways to compute the same thing:

=================  ======================================================================
``flash``          FlashAttention over the window, sinks merged; compute capability 8 and 9
``triton``         one fused kernel, compute capability 8 and later, float32 too
``flash+triton``   ``flash`` for steps that prefill, ``triton`` for those that only decode:
                   what ``auto`` chooses where FlashAttention runs
``xformers``       memory-efficient attention, merged; older GPUs, and an independent check
``torch``          plain tensors on any device; for CPUs, and the reference for the others
=================  ======================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol

import torch

from vllm_sink.attention.paged_step import PagedStep
from vllm_sink.errors import UnsupportedError

#: Channels of a head. FlashAttention 3 takes 256, but under a window it gave some queries wrong
#: results there (three query heads a KV head, pages of 64; vLLM 0.32 on an H100).
MAX_HEAD_SIZE = 192


class Provider(Protocol):
    """One layer's attention over a paged cache."""

    def attend(
        self,
        step: PagedStep,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
    ) -> None:
        """Attention of a step's tokens.

        Args:
            step: the batch.
            query: [tokens, num_heads, head_size], rotated at their true index.
            key_cache, value_cache: [blocks, block_size, num_kv_heads, head_size].
            output: as ``query``, written.
        """
        ...


@dataclass(frozen=True)
class Traits:
    """What the choice depends on.

    Attributes:
        capability: (major, minor) of the GPU; None on the CPU.
        dtype: of the model.
        head_size: channels of a head.
        block_size: tokens of a block.
        alibi: the model has ALiBi.
        soft_cap: the model caps its scores.
    """

    capability: tuple[int, int] | None
    dtype: torch.dtype
    head_size: int
    block_size: int
    alibi: bool = False
    soft_cap: bool = False


@dataclass(frozen=True)
class Choice:
    """A provider, and why this one."""

    name: str
    why: str


def _flash(traits: Traits) -> str | None:
    if traits.capability is None:
        return "there is no NVIDIA GPU"
    if traits.capability[0] not in (8, 9):
        return f"compute capability {_dotted(traits)}; allowed: 8.x and 9.x"
    if traits.dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in float16 or bfloat16, and the model is {traits.dtype}"
    if traits.head_size > MAX_HEAD_SIZE or traits.head_size % 8:
        return f"head size {traits.head_size}; allowed: multiples of 8 up to {MAX_HEAD_SIZE}"
    if traits.alibi and traits.capability[0] == 9:
        return "FlashAttention 3 has no ALiBi"
    if traits.block_size % 16:
        return f"--block-size {traits.block_size}; allowed: multiples of 16"
    return None


def _triton(traits: Traits) -> str | None:
    if traits.capability is None:
        return "there is no NVIDIA GPU"
    if traits.capability < (8, 0):
        return f"compute capability {_dotted(traits)}; allowed: 8.0 and later"
    return None


def _xformers(traits: Traits) -> str | None:
    if traits.capability is None:
        return "there is no NVIDIA GPU"
    if find_spec("xformers") is None:
        return "it is not installed: pip install 'vllm-sink[xformers]'"
    if traits.alibi:
        return "it has no ALiBi for rows of different lengths"
    if traits.soft_cap:
        return "it has no soft cap on scores"
    # Whether one of its operators takes the shape is found out on the GPU, in the worker.
    return None


def _torch(traits: Traits) -> str | None:
    return None


_UNSUPPORTED = {"flash": _flash, "triton": _triton, "xformers": _xformers, "torch": _torch}


def choose(requested: str, traits: Traits) -> Choice:
    """The provider that computes attention.

    Raises:
        UnsupportedError: the requested one cannot, with the reason.
    """
    if requested != "auto":
        reason = _UNSUPPORTED[requested](traits)
        if reason is not None:
            raise UnsupportedError(f"--sink-attention {requested}: {reason}")
        return Choice(requested, "as asked for")
    if traits.capability is None:
        return Choice("torch", "this is a CPU")
    no_flash, no_triton = _flash(traits), _triton(traits)
    if no_flash is None:
        return Choice(
            "flash+triton",
            f"FlashAttention prefills on compute capability {_dotted(traits)}, the fused kernel "
            "decodes",
        )
    if no_triton is None:
        return Choice("triton", f"no FlashAttention: {no_flash}")
    no_xformers = _xformers(traits)
    if no_xformers is None:
        return Choice("xformers", f"no Triton: {no_triton}")
    return Choice("torch", f"no Triton: {no_triton}; no xformers: {no_xformers}")


def _dotted(traits: Traits) -> str:
    assert traits.capability is not None
    return ".".join(map(str, traits.capability))


def is_paged(provider: str) -> bool:
    """Whether it takes a ``PagedStep``; ``torch`` takes tiles."""
    return provider != "torch"


def needs_compact_tables(provider: str) -> bool:
    return provider in ("flash", "flash+triton")


def needs_host(provider: str) -> bool:
    return provider == "xformers"


def in_cuda_graphs(provider: str) -> bool:
    """Whether whole decode steps are captured; the others run between piecewise graphs."""
    return provider in ("flash", "flash+triton", "triton")


def takes_windows(provider: str) -> bool:
    """Whether a request may have a window of its own: not in a graph of FlashAttention's, which
    holds one number for all rows."""
    return provider != "flash"


def fuses_decode(provider: str) -> bool:
    """Whether steps that only decode go to the fused kernel."""
    return provider in ("triton", "flash+triton")
