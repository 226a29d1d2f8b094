"""vLLM's CPU build under vLLM's Ray executor.

vLLM refuses it on a CPU for one reason: the platform has no name for its device in Ray's resources.
With a name all of it runs: Ray's placement group, its actors, vLLM's messages between them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def name_the_device() -> None:
    """In the driver, and by Ray's hook in every worker process."""
    from vllm.platforms.cpu import CpuPlatform

    CpuPlatform.ray_device_key = "GPU"


def ray_with_devices(count: int) -> Any:
    """A Ray with this many "devices", whose worker processes know the resource's name."""
    import ray

    name_the_device()
    return ray.init(
        num_cpus=count + 1,
        num_gpus=count,
        include_dashboard=False,
        runtime_env={
            "worker_process_setup_hook": "tests.ray.cpu_devices.name_the_device",
            # Ray's processes do not stand where this one was started.
            "env_vars": {"PYTHONPATH": str(Path(__file__).parents[2])},
        },
    )
