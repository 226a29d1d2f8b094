"""What is refused before any process starts, and with which message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.engines import tiny
from vllm_sink.commands import diagnosis, verdict
from vllm_sink.config.kv_policy import KVPolicy
from vllm_sink.errors import PolicyError, UnsupportedError


def _config(folder: Path, policy: dict[str, Any] | str, **settings: Any) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    from vllm_sink.plugin import register

    register()
    args = EngineArgs(
        model=str(folder), dtype="float32", additional_config={"kv_policy": policy}, **settings
    )
    return args.create_engine_config()


@pytest.fixture(scope="module")
def folder(tiny_folder: Path) -> Path:
    return tiny("llama", tiny_folder)


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        ("typo", "--kv-policy"),
        ({"name": "sink", "sink_tokens": -1}, "--sink-tokens"),
        ({"name": "sink", "sink_tokens": "4"}, "--sink-tokens"),
        ({"name": "sink", "sink_tokens": 128}, "--sink-tokens"),
        ({"name": "sink", "window_tokens": 0}, "--window-tokens"),
        ({"name": "sink", "window_tokens": 1.5}, "--window-tokens"),
        ({"name": "sink", "window_tokens": 125}, "--window-tokens"),
        ({"name": "window", "sink_tokens": 2}, "--sink-tokens"),
        ({"name": "sink", "windw": 3}, "kv_policy.windw"),
    ],
)
def test_bad_policy(folder: Path, policy: dict[str, Any] | str, field: str) -> None:
    with pytest.raises(PolicyError) as caught:
        _config(folder, policy)
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_a_pool_too_small_for_one_stream(folder: Path) -> None:
    with pytest.raises(PolicyError, match=r"--window-tokens: 60 .* the pool has"):
        _config(
            folder,
            {"name": "sink", "window_tokens": 60},
            num_gpu_blocks_override=5,
            max_num_batched_tokens=64,
        )


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"pipeline_parallel_size": 2}, "--pipeline-parallel-size"),
        ({"kv_cache_dtype": "fp8"}, "--kv-cache-dtype"),
        ({"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"}, "--scheduler-cls"),
        ({"worker_cls": "some.Worker"}, "--worker-cls"),
    ],
)
def test_unsupported_features(folder: Path, settings: dict[str, Any], flag: str) -> None:
    with pytest.raises(UnsupportedError, match=flag):
        _config(folder, {"name": "sink", "window_tokens": 60}, **settings)


def test_context_parallelism(tiny_folder: Path) -> None:
    # With one KV head vLLM itself would take it.
    folder = tiny("falcon-rope-mqa", tiny_folder)
    settings = {"decode_context_parallel_size": 2, "tensor_parallel_size": 2}
    with pytest.raises(UnsupportedError, match="--decode-context-parallel-size"):
        _config(folder, {"name": "sink"}, **settings)


def test_rust_front_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(UnsupportedError, match="Rust"):
        _config(folder, {"name": "sink", "window_tokens": 60})


def test_numbers_are_chosen_and_kept(folder: Path) -> None:
    config = _config(folder, {"name": "sink"})
    assert config.additional_config["kv_policy"] == {
        "name": "sink",
        "sink_tokens": 4,
        "window_tokens": 64,
        "native_context": 128,
        "replaces_sliding_window": False,
        "sink_attention": "auto",
        "provider": "torch",
        "segment_tokens": 17_408,  # the context, the largest chunk, in whole Ki
        "stream_tokens": None,
        "pins_system": False,
        "true_positions": False,
    }
    assert config.model_config.max_model_len == 17_408
    assert config.scheduler_config.scheduler_cls == "vllm_sink.engine.scheduler.SinkScheduler"
    assert config.parallel_config.worker_cls == "vllm_sink.worker.cpu.SinkCPUWorker"


def test_full_leaves_nothing_behind(folder: Path) -> None:
    config = _config(folder, {"name": "full"})
    assert config.additional_config == {}
    assert config.model_config.max_model_len == 128
    assert config.scheduler_config.scheduler_cls is None


def test_mistral_gives_its_window_to_the_policy(tiny_folder: Path) -> None:
    folder = tiny("mistral", tiny_folder)
    policy = _config(folder, {"name": "sink"}).additional_config["kv_policy"]
    assert policy["replaces_sliding_window"]
    assert policy["native_context"] == 96  # its sliding window, not its 128 positions
    with pytest.raises(PolicyError, match="1 to 92"):
        _config(folder, {"name": "sink", "window_tokens": 93})


def _diagnose(folder: Path, **settings: Any) -> dict[str, Any]:
    return diagnosis.diagnose(str(folder), KVPolicy("sink", 4), 1.0, **settings)


def test_doctor(folder: Path) -> None:
    found = _diagnose(folder, dtype="float32")
    assert found["supported"]
    assert (found["sink_tokens"], found["window_tokens"]) == (4, 64)
    # 3 layers, 4 heads of 32 channels, keys and values, 4 bytes.
    assert found["kv_bytes_per_token"] == 3 * 4 * 32 * 2 * 4
    # A window of 64 tokens lies in 2 or 3 blocks of 32, and one block holds the sinks.
    assert found["blocks_per_stream"] == 4
    # The places in a batch bound them, not the pool: vLLM's default is 128.
    assert found["streams_that_fit"] == int(0.8 * 128)
    few = _diagnose(folder, dtype="float32", num_gpu_blocks_override=101)
    assert few["streams_that_fit"] == int(0.8 * 100) // 4
    assert "supported" in verdict.render(found)
    assert (found["max_stream_tokens"], found["segment_tokens"]) == (None, 17_408)
    assert "until it is stopped, in segments of 17,408 tokens" in verdict.render(found)
    bounded = _diagnose(folder, dtype="float32", max_model_len=5000)
    assert "5,000 tokens (--max-model-len)" in verdict.render(bounded)


def test_doctor_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    missing = tmp_path / "model"
    assert _diagnose(missing) == {
        "model": str(missing),
        "supported": False,
        "refused": f"there is no folder {missing}",
    }


@pytest.mark.parametrize("arch", ["mpt"])
def test_doctor_refuses(arch: str, tiny_folder: Path) -> None:
    found = _diagnose(tiny(arch, tiny_folder))
    assert not found["supported"]
    assert "Mpt" in found["refused"]


@pytest.mark.parametrize(
    ("scaling", "why"),
    [
        ({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, "length of the sequence"),
        (
            {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 16,
                "long_factor": [2.0] * 16,
                "original_max_position_embeddings": 64,
                "factor": 2.0,
            },
            "length of the sequence",
        ),
    ],
)
def test_length_dependent_rope_is_refused(
    scaling: dict[str, Any], why: str, tmp_path: Path, folder: Path
) -> None:
    import json
    import shutil

    changed = tmp_path / "model"
    shutil.copytree(folder, changed)
    config = json.loads((changed / "config.json").read_text())
    config["rope_parameters"] = scaling
    (changed / "config.json").write_text(json.dumps(config))
    found = _diagnose(changed)
    assert not found["supported"]
    assert why in found["refused"]


def test_max_model_len_bounds_streams_not_their_bookkeeping(folder: Path) -> None:
    policy = {"name": "sink", "segment_tokens": 1024}
    for length, bookkeeping in ((None, 1024), (-1, 1024), (100_000, 1024), (512, 512)):
        config = _config(folder, policy, max_model_len=length)
        assert config.model_config.max_model_len == bookkeeping
        wanted = None if length == -1 else length
        assert config.additional_config["kv_policy"]["stream_tokens"] == wanted


def test_a_config_that_is_made_twice_is_the_same(folder: Path) -> None:
    """API server processes build theirs from the first one's arguments."""
    from vllm.engine.arg_utils import EngineArgs

    policy = {"kv_policy": {"name": "sink"}}
    args = EngineArgs(model=str(folder), dtype="float32", additional_config=policy)
    first, second = args.create_engine_config(), args.create_engine_config()
    assert first.additional_config == second.additional_config
    assert first.model_config.max_model_len == second.model_config.max_model_len


@pytest.mark.parametrize("segment", [0, -5, 1.5, "big", 223])
def test_bad_segment(folder: Path, segment: Any) -> None:
    """One block of sinks, two of window, three to spare: 6 blocks of 32 tokens and no less."""
    policy = {"name": "sink", "window_tokens": 60, "segment_tokens": segment}
    with pytest.raises(PolicyError, match="--segment-tokens") as caught:
        _config(folder, {**policy, "window_tokens": 90})
    assert caught.value.value == segment
    assert _config(folder, {**policy, "segment_tokens": 192}).model_config.max_model_len == 192
