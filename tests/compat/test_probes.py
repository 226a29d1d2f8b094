"""The probes see every hook, and every missing one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compat.trees import installed, linked, own_copy, rename
from vllm_sink.compat import probes
from vllm_sink.compat.hooks import Hook
from vllm_sink.compat.source import Source
from vllm_sink.errors import UnsupportedError

FOUND = probes.check(Source(installed()))
#: What this vLLM has; one hook represents all those on the same function.
PRESENT = {f.hook.target: f.hook for f in FOUND if f.where and f.hook.kind != "imports"}


def test_every_probe_holds_here() -> None:
    assert [f"{f.hook.target}: {f.problem}" for f in FOUND if not f.holds] == []
    assert {f.hook.kind for f in FOUND} == {
        "wraps",
        "replaces",
        "adds",
        "overrides",
        "reads",
        "imports",
    }
    assert probes.version() in probes.KNOWN_VERSIONS


@pytest.mark.parametrize("target", PRESENT)
def test_what_is_renamed_is_named(target: str, tmp_path: Path) -> None:
    hook, package = PRESENT[target], target.partition(".")[0]
    rename(root := linked(tmp_path, package), hook)
    check = {"vllm": probes.check_vllm, "ray": probes.check_ray}[package]
    missing = {f.hook.target for f in check(Source(root)) if not f.holds}
    if hook.optional:
        assert target not in missing
    else:
        assert target in missing


def test_a_method_that_is_given_more_is_named(tmp_path: Path) -> None:
    """An argument that an override does not know would be a TypeError in the first step."""
    root = linked(tmp_path)
    target = (
        "vllm.v1.core.single_type_kv_cache_manager:SingleTypeKVCacheManager.allocate_new_blocks"
    )
    rename_parameter(root, "v1/core/single_type_kv_cache_manager.py", "num_tokens_main_model")
    (problem,) = (f.problem for f in probes.check(Source(root)) if f.hook.target == target)
    assert "num_tokens_main_model_renamed" in problem


def test_a_method_that_takes_less_is_named(tmp_path: Path) -> None:
    """So would be an argument that an override passes on to a method that does not know it."""
    root = linked(tmp_path)
    file = Path("v1/core/single_type_kv_cache_manager.py")
    gone = "        apply_admission_cap: bool = False,\n        prefill_end: int = 0,\n"
    text = (root / file).read_text()
    if gone not in text:
        pytest.skip("this vLLM's method has other arguments")
    own_copy(root, file).write_text(text.replace(gone, "", 1))
    target = (
        "vllm.v1.core.single_type_kv_cache_manager:"
        "SingleTypeKVCacheManager.get_num_blocks_to_allocate"
    )
    (problem,) = (f.problem for f in probes.check(Source(root)) if f.hook.target == target)
    assert problem


def rename_parameter(root: Path, file: str, name: str) -> None:
    copy = own_copy(root, Path(file))
    copy.write_text(copy.read_text().replace(name, f"{name}_renamed"))


def test_an_unknown_version_goes_on_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "KNOWN_VERSIONS", ("0.1.0",))
    probes.require.cache_clear()
    try:
        warning = probes.require()
    finally:
        probes.require.cache_clear()
    assert warning is not None
    assert f"vLLM {probes.version()} has not been tested" in warning
    assert "0.1.0" in warning


def test_a_failed_probe_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = linked(tmp_path)
    target = "vllm.v1.engine.input_processor:InputProcessor.process_inputs"
    rename(root, Hook("wraps", target, ""))
    monkeypatch.setattr(probes, "installed", lambda: Source(root))
    probes.require.cache_clear()
    try:
        with pytest.raises(UnsupportedError, match=r"InputProcessor\.process_inputs"):
            probes.require()
    finally:
        probes.require.cache_clear()


def run_with(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A command under the vLLM in ``folder``."""
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", *command],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize(
    "target",
    [
        "vllm.v1.core.sched.scheduler:Scheduler._reserve_prefill_lookahead",
        "vllm.v1.engine.output_processor:RequestState.make_request_output",
    ],
)
def test_a_server_does_not_start(target: str, tmp_path: Path, tiny_folder: Path) -> None:
    """A real ``vllm serve`` on a vLLM that has lost one method."""
    from tests.e2e.engines import tiny

    rename(linked(tmp_path), PRESENT[target])
    folder = tiny("llama-gqa", tiny_folder)
    done = run_with(
        tmp_path,
        "vllm.entrypoints.cli.main",
        "serve",
        str(folder),
        "--kv-policy",
        "sink",
        "--enforce-eager",
    )
    assert done.returncode != 0
    assert f"{target}: it is not there" in done.stderr


def test_doctor_tells_of_a_vllm_that_has_lost_one(tmp_path: Path) -> None:
    target = "vllm.v1.worker.gpu.model_states.default:DefaultModelState.prepare_attn"
    rename(linked(tmp_path), PRESENT[target])
    done = run_with(tmp_path, "vllm_sink.cli", "doctor", "--hooks", "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert not told["holds"]
    (lost,) = [h for h in told["hooks"] if h["problem"]]
    assert lost["target"] == target


@pytest.fixture(scope="module")
def lost_ray(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a Ray that has lost one attribute, and which."""
    pytest.importorskip("ray", reason="ray is not installed (the extra 'ray')")
    folder = tmp_path_factory.mktemp("lost")
    target = "ray.serve._private.replica:Replica._deployment_config"
    rename(linked(folder, "ray"), PRESENT[target])
    return folder, target


def test_doctor_tells_of_a_ray_that_has_lost_one(lost_ray: tuple[Path, str]) -> None:
    folder, target = lost_ray
    done = run_with(folder, "vllm_sink.cli", "doctor", "--hooks")
    assert done.returncode == 1
    assert f"MISSING {target}: it is not there" in done.stdout
    assert "of Ray, attributes that no interface promises: " in done.stdout


def test_an_application_is_not_built(lost_ray: tuple[Path, str]) -> None:
    folder, target = lost_ray
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", "from vllm_sink.serving.ray import build; build({})"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode != 0
    assert f"{target}: it is not there" in done.stderr.splitlines()[-1]
