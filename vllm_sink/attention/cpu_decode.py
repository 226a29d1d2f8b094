"""The CPU's decode kernel (``kernels/cpu_decode.cpp``): compiled once a machine, then loaded.

It also stores a step's keys and values. The machine's C++ compiler builds it, as vLLM on a CPU
builds models. Without a compiler ``cpu_kernel`` computes the same with torch's kernels.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from vllm import envs
from vllm.logger import init_logger

from vllm_sink.rope.phase import angles

if TYPE_CHECKING:
    from vllm_sink.attention.layer import LayerParams
    from vllm_sink.attention.tiles import Tile

logger = init_logger("vllm.sink")

SOURCE = Path(__file__).parent / "kernels" / "cpu_decode.cpp"
NAME = "vllm_sink_cpu_decode"
#: For this processor; products may be summed in any order, which vector instructions need.
FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fassociative-math"]
FLAGS += ["-fno-signed-zeros", "-fopenmp"]
if platform.machine() == "x86_64":
    FLAGS.append("-mprefer-vector-width=512")
DTYPES = (torch.bfloat16, torch.float32)
#: Set to 0, nothing is compiled.
SWITCH = "SINK_CPU_KERNEL"


@functools.cache
def kernel() -> Any:
    """``torch.ops.vllm_sink``, or None where it cannot be compiled; the log says why."""
    if os.environ.get(SWITCH, "1") == "0":
        return None
    try:
        _load()
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        lines = str(error).strip().splitlines()
        logger.warning(
            "The CPU's decode kernel was not compiled, torch's is used: %s",
            lines[-1] if lines else repr(error),
        )
        return None
    return torch.ops.vllm_sink


def _load() -> None:
    """Register the operations, from the shared object, which is compiled if it is missing."""
    recipe = SOURCE.read_bytes() + " ".join([*FLAGS, torch.__version__, *_processor()]).encode()
    folder = Path(envs.VLLM_CACHE_ROOT) / "vllm_sink"
    library = folder / f"{NAME}-{hashlib.sha256(recipe).hexdigest()[:16]}.so"
    if library.exists():
        torch.ops.load_library(library)
        return
    from torch.utils.cpp_extension import load

    folder.mkdir(parents=True, exist_ok=True)
    logger.info("Compiling the CPU's decode kernel: half a minute, once a machine.")
    start = time.monotonic()  # s
    # In a temporary folder: no lock of another process that compiles it, or died at it.
    with tempfile.TemporaryDirectory(dir=folder) as build:
        load(
            NAME,
            [str(SOURCE)],
            extra_cflags=FLAGS,
            # Threads are those of torch, whose runtime is loaded under the same name.
            extra_ldflags=["-fopenmp"],
            build_directory=build,
            is_python_module=False,
        )
        complete = shutil.copy(Path(build) / f"{NAME}.so", f"{build}.so")
    os.replace(complete, library)
    logger.info("Compiled it in %.0f s: %s", time.monotonic() - start, library)


def _processor() -> list[str]:
    """What ``-march=native`` depends on: a cache may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return next(([x] for x in lines if x.startswith(("flags", "Features"))), [])


def attend(
    layer: LayerParams, tile: Tile, query: torch.Tensor, cache: torch.Tensor, output: torch.Tensor
) -> bool:
    """Attention of a tile of decodes; False where this kernel does not compute it.

    Args:
        layer: of the layer; without soft cap and ALiBi.
        tile: with one query a run.
        query: [tokens, num_heads, head_size], rotated at their true index.
        cache: [slots, num_kv_heads, 2 * head_size], keys then values.
        output: [tokens, num_heads, head_size], written where the tile's queries are.
    """
    compiled = kernel() if query.dtype in DTYPES else None
    if compiled is None:
        return False
    window = layer.window_tokens
    has_sinks = layer.sinks and tile.sink_slots is not None
    rows = tile.once("rows", lambda: tile.queries[:, 0].contiguous())
    slots, visible = tile.once(("keys", window, has_sinks), lambda: _keys(tile, window, has_sinks))
    if has_sinks and layer.rotary is not None:
        units, evicted = layer.rotary.units, tile.evicted
        assert evicted is not None
        cos, sin = tile.once(("turn", layer.rotary.key), lambda: angles(evicted[:, 0], units))
        neox = layer.rotary.is_neox_style
    else:
        cos = sin = tile.once("no turn", lambda: torch.empty(len(rows), 0))
        neox = True
    sinks = tile.sink_slots.shape[1] if has_sinks and tile.sink_slots is not None else 0
    turn = (cos, sin, neox)
    compiled.cpu_decode(query, rows, cache, slots, visible, sinks, *turn, layer.scale, output)
    return True


def store(key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor) -> bool:
    """Write a step's keys and values to their slots; False where torch must do it.

    Args:
        key, value: [tokens, num_kv_heads, head_size].
        cache: [slots, num_kv_heads, 2 * head_size], of the same type.
        slots: int64 [<= tokens]; nothing is stored where it is negative.
    """
    compiled = kernel() if cache.device.type == "cpu" and key.dtype == cache.dtype else None
    if compiled is None:
        return False
    compiled.cpu_store(key, value, cache, slots)
    return True


def _keys(tile: Tile, window: int, has_sinks: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots, int64 [n, keys], and which of them are visible, bool [n, keys]; sinks first."""
    visible = tile.visible(window)[:, 0]
    if not has_sinks:
        return tile.window_slots.contiguous(), visible.contiguous()
    assert tile.sink_slots is not None
    assert tile.sink_visible is not None
    slots = torch.cat((tile.sink_slots, tile.window_slots), 1)
    return slots, torch.cat((tile.sink_visible[:, 0], visible), 1)
