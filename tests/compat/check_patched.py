"""Run by test_patches.py after the suite's core, in the same process, on a patched vLLM."""

from __future__ import annotations

import importlib
import os

import pytest
import vllm

from vllm_sink.compat import hooks


def test_this_is_the_patched_vllm() -> None:
    assert vllm.__file__ is not None
    assert vllm.__file__.startswith(os.environ["PATCHED_VLLM"])


@pytest.mark.parametrize("hook", hooks.WRAPS, ids=lambda hook: hook.qualname)
def test_nothing_was_replaced(hook: hooks.Hook) -> None:
    owner, _, name = hook.qualname.rpartition(".")
    module = importlib.import_module(hook.module)
    if name == "EngineCoreRequest":
        assert getattr(module, name).__module__ == "vllm.v1.engine"
        assert module.EngineCoreProc.request_type.__module__ == "vllm_sink.requests.core_request"
        return
    if not owner:
        found = getattr(module, name)
        assert found.__module__.partition(".")[0] == "vllm"
        assert "sink_stats" not in getattr(found, "__dataclass_fields__", ())
        return
    found = getattr(module, owner).__dict__[name]
    function = getattr(found, "__func__", found)
    assert function.__module__ == hook.module
    assert function.extend.__module__ == "vllm.plugins.extension_points"


def test_the_points_were_used() -> None:
    from vllm.v1.engine.input_processor import InputProcessor

    point = InputProcessor.process_inputs
    assert point.extended is not point.__wrapped__
