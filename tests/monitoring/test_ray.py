"""The same through Ray: an engine in a Ray actor, a real Prometheus that scrapes Ray's own port.

It uses vLLM's ``RayPrometheusStatLogger``, as Ray Serve does; ours follows. Skipped if Ray is not
installed (the extra ``ray``).
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from tests.e2e.engines import random_tokens, tiny
from tests.e2e.servers import free_port
from tests.monitoring.definitions import filled, rules, targets
from tests.monitoring.prometheus import prometheus

ray = pytest.importorskip("ray", reason="ray is not installed")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("monitoring"),
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="no prometheus (Debian: prometheus)"
    ),
]

SINKS, WINDOW = 4, 60


class Replica:
    """An engine as Ray Serve makes it."""

    def __init__(self, folder: str) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.plugins import load_general_plugins
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

        load_general_plugins()
        tenancy = {"tenant_label": "user", "tenant_names": "plain"}
        policy = {"name": "sink", "sink_tokens": SINKS, "window_tokens": WINDOW}
        args = AsyncEngineArgs(
            model=folder,
            served_model_name="tiny",
            dtype="float32",
            enforce_eager=True,
            additional_config={
                "kv_policy": policy,
                "sink_tenancy": tenancy,
            },
        )
        self.llm = AsyncLLM.from_engine_args(args, stat_loggers=[RayPrometheusStatLogger])

    async def stream(self, tokens: list[int], output: int) -> int:
        """How many tokens a stream generated."""
        from vllm import SamplingParams

        params = SamplingParams(
            max_tokens=output, ignore_eos=True, extra_args={"sink_tenant": "me"}
        )
        said = 0
        prompt = {"prompt_token_ids": tokens}
        async for out in self.llm.generate(prompt, params, f"r{time.monotonic_ns()}"):
            said = len(out.outputs[0].token_ids)
        return said


def test_every_panel_and_rule_has_data(tiny_folder: Path, tmp_path: Path) -> None:
    port = free_port()
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        _metrics_export_port=port,
        _system_config={"metrics_report_interval_ms": 1000},
    )
    try:
        folder = str(tiny("llama-gqa", tiny_folder))
        replica = ray.remote(Replica).remote(folder)
        with prometheus(f"127.0.0.1:{port}", tmp_path) as prom:
            assert ray.get(replica.stream.remote(random_tokens(100), 60), timeout=300) == 60
            end = time.time() + 90
            turn = 0
            while time.time() < end:
                two = [
                    replica.stream.remote(random_tokens(100, seed=turn), 60),
                    replica.stream.remote(random_tokens(40, seed=1000 + turn // 2), 400),
                ]
                assert ray.get(two, timeout=120) == [60, 400]
                turn += 1
            asked = [(t.panel, filled(t.expr)) for t in targets()]
            asked += [(r["record"], r["record"]) for r in rules() if "record" in r]
            empty = [f"{name}: {expr}" for name, expr in asked if not prom.finite(expr, 90)]
            names = [n for n in prom.get("label/__name__/values") if "sink" in n]
            assert not empty, "\n".join([*empty, "there is:", *names])
            assert max(prom.finite("ray_vllm_sink_native_context_tokens", 90)) == 128
            assert not any(n.startswith("vllm_sink_") for n in names)
    finally:
        ray.shutdown()
