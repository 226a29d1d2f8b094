"""Replicas follow live streams, however few requests are made; none is cut silently."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.engines import tiny
from tests.e2e.servers import until
from tests.ray.cluster import SINKS, WINDOW, cluster
from tests.ray.sessions import endless

pytest.importorskip("ray", reason="ray is not installed (the extra 'ray')")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

#: A pool of a dozen streams of four blocks each; so many that one replica is too full for its
#: target, and so few that one would do.
BLOCKS, MANY, FEW = 49, 11, 8


def test_replicas_follow_live_streams(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = {"name": "sink", "sink_tokens": SINKS, "window_tokens": WINDOW}
    config = {
        "model_loading_config": {
            "model_id": "tiny",
            "model_source": str(tiny("llama-gqa", tiny_folder)),
        },
        "accelerator_config": {"kind": "cpu"},
        "engine_kwargs": {
            "dtype": "float32",
            "enforce_eager": True,
            "block_size": 32,
            "max_num_batched_tokens": 96,
            "max_num_seqs": 16,
            "num_gpu_blocks_override": BLOCKS,
            "additional_config": {"kv_policy": policy},
        },
        "deployment_config": {
            "ray_actor_options": {"num_cpus": 0.5},
            "graceful_shutdown_timeout_s": 9,
            "autoscaling_config": {
                "min_replicas": 1,
                "max_replicas": 2,
                "upscale_delay_s": 1,
                "downscale_delay_s": 3,
                "look_back_period_s": 5,
            },
        },
    }
    with cluster(tmp_path, tiny_folder) as it:
        from ray import serve

        from vllm_sink.serving.ray import build

        serve.run(build({"llm_configs": [config]}))
        it.wait_for_replicas(1)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(it.url + "/v1/models")
        with endless(it.url, range(MANY)) as many:
            it.wait_for_replicas(2)
        assert not any(s.reasons for s in many)
        with endless(it.url, range(100, 100 + FEW)) as few:
            it.wait_for_replicas(1)
            until(lambda: not any(s.lost for s in few), 60)
    gaps = sorted(gap for s in few for gap in s.gaps)
    reasons = sorted({r for s in few for r in s.reasons})
    with capsys.disabled():
        print(f"\n{len(gaps)} streams moved; gaps {[round(g, 2) for g in gaps]} s; told {reasons}")
    assert gaps, "no stream was on the replica that went"
    assert all("shutting down" in r for r in reasons), reasons
