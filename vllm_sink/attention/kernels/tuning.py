"""Sizes of a launch of the fused kernel, and into how many parts a row is cut."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton

from vllm_sink.attention.layer import LayerParams

#: No row is cut into more parts: the last program reads them all.
MAX_SPLITS = 32

#: Programs a processor is given when rows are cut into parts.
WAVES = 2


@dataclass(frozen=True)
class Tuning:
    """Sizes of a launch, found on an H100 with benchmarks.kernel.

    Attributes:
        block_m: queries of a program (heads of a group times tokens).
        block_n: keys of one iteration.
        warps, stages: of a program; stages of loads in flight.
    """

    block_m: int
    block_n: int
    warps: int
    stages: int


def decode_tuning(layer: LayerParams, itemsize: int, splits: int) -> Tuning:
    """Of a decode step. Few keys a program: small blocks, soon begun; many: large ones.

    Args:
        itemsize: bytes of a channel of a key.
        splits: parts of a row.
    """
    block_m = max(16, triton.next_power_of_2(layer.group))
    keys = 4096 // (layer.head_size * itemsize)  # in 4 KiB
    if layer.window_tokens // splits > 2048:
        return Tuning(block_m, block_n=_block(16, 8 * keys, 128), warps=4, stages=3)
    return Tuning(block_m, block_n=_block(16, 2 * keys, 64), warps=4, stages=5)


def _block(low: int, value: int, high: int) -> int:
    """``value`` within [low, high], as a power of two, which Triton's blocks must be."""
    return max(low, min(triton.next_power_of_2(value), high))


def merge_tuning(layer: LayerParams) -> Tuning:
    """Of a decode step's sinks alone: few keys."""
    return Tuning(max(16, triton.next_power_of_2(layer.group)), block_n=16, warps=2, stages=2)


def prefill_tuning(layer: LayerParams, itemsize: int) -> Tuning:
    """Of a step in which some row has several tokens; ``itemsize`` as in ``decode_tuning``."""
    wide = layer.head_size * itemsize > 256
    block_m = 32 if layer.head_size * itemsize > 512 else 64 if wide else 128
    return Tuning(
        block_m=max(block_m, triton.next_power_of_2(layer.group)),
        block_n=32 if wide else 64,
        warps=4 if wide else 8,
        stages=2 if wide else 3,
    )


@functools.cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; 1 where the kernels are interpreted."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def programs_that_fill(device: torch.device) -> int:
    """Programs that keep a GPU busy; a batch with fewer has its rows cut into parts."""
    return WAVES * processors(device)


def splits_of(layer: LayerParams, rows: int, device: torch.device) -> int:
    """Parts of a row in a decode step of ``rows`` rows: a power of two, so that few kernels are
    compiled, and 1 where the batch fills the GPU by itself.
    """
    wanted = programs_that_fill(device) // (rows * layer.num_kv_heads)
    limit = min(MAX_SPLITS, max(1, layer.window_tokens // 32))
    return 1 << (max(1, min(wanted, limit)).bit_length() - 1)
