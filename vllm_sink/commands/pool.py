"""How large the KV pool can be: the memory of a GPU, less what else it holds."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vllm_sink.errors import PolicyError

GIB = 2**30

#: Device memory that goes to activations and CUDA graphs; vLLM measures it at start-up.
OVERHEAD_GIB = 1.0

#: vLLM's own default.
UTILIZATION = 0.92


class Gpu(NamedTuple):
    """The memory of a GPU.

    Attributes:
        gib: GiB of it; None for this machine's GPU.
        utilization: the fraction that vLLM may use.
        overhead_gib: GiB for activations and CUDA graphs.
    """

    gib: float | None
    utilization: float
    overhead_gib: float


def weight_bytes(model: str) -> int | None:
    """Size of a model folder's weights; None if it has none."""
    files = list(Path(model).expanduser().glob("*.safetensors"))
    return sum(f.stat().st_size for f in files) if files else None


def left_on(gpu: Gpu, model: str, weights: int | None) -> tuple[int, str]:
    """Bytes left for KV, and the formula that gives them.

    Args:
        gpu: the memory.
        model: a model folder or name.
        weights: bytes of the model's weights.

    Raises:
        PolicyError: there is no GPU and no size is given, or nothing is left for KV.
    """
    memory = gpu_memory() if gpu.gib is None else int(gpu.gib * GIB)
    if memory is None:
        raise PolicyError("--kv-gib", None, "a number of GiB, or --gpu-gib: there is no GPU here")
    if weights is None:
        raise PolicyError(
            "--kv-gib", None, f"a number of GiB: the weights of {model} are not in a folder"
        )
    left = memory * gpu.utilization - weights - gpu.overhead_gib * GIB
    formula = (
        f"{memory / GIB:.1f} GiB x {gpu.utilization} - {weights / GIB:.2f} GiB of "
        f"weights - {gpu.overhead_gib} GiB of overhead"
    )
    if left <= 0:
        raise PolicyError("--gpu-gib", round(memory / GIB, 2), f"more: nothing is left ({formula})")
    return int(left), formula


def gpu_memory() -> int | None:
    """Bytes of this GPU; None without one."""
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory) if _has_gpu() else None


def gpu_bandwidth() -> float | None:
    """Peak bytes per second of this GPU's memory, from its clock and bus; None if unknown."""
    import torch

    if not _has_gpu():
        return None
    properties = torch.cuda.get_device_properties(0)
    clock = getattr(properties, "memory_clock_rate", 0)  # kHz
    bus = getattr(properties, "memory_bus_width", 0)  # bits
    # Twice: data on both edges of the clock.
    return 2 * clock * 1e3 * bus / 8 or None


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())
