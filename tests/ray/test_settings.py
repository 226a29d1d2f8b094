"""``vllm serve``'s flags behind Ray: each has its effect, or is Ray's own, or is refused."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="ray is not installed (the extra 'ray')")

from tests.e2e.engines import tiny
from tests.ray.cluster import write_flags
from vllm_sink import compat, plugin
from vllm_sink.errors import PolicyError, UnsupportedError
from vllm_sink.serving.ray.server_flags import RAYS_OWN, READ, REFUSED
from vllm_sink.serving.ray.settings import Flags

FRONTEND = {f.name: f for f in dataclasses.fields(compat.serve_arguments().FrontendArgs)}

#: What the parser itself has for ``--config`` and for the model's name.
PARSERS_OWN = {"help", "model_tag", "config"}

#: A value of each flag that is refused, as the file has it.
VALUES = {
    "allowed_headers": "'[\"X-Mine\"]'",
    "allowed_methods": "'[\"GET\"]'",
    "allowed_origins": "'[\"http://localhost\"]'",
    "anthropic_disabled_thinking_effort": "none",
    "api_key": "secret",
    "grpc_port": "1234",
    "lora_modules": "[name=path]",
    "middleware": "[a.b]",
    "sse_keep_alive_interval": "1",
    "uvicorn_log_level": "error",
}


def _value(name: str) -> str:
    """Another value than the default."""
    if name in VALUES:
        return VALUES[name]
    default = FRONTEND[name].default if name in FRONTEND else False
    if isinstance(default, bool):
        return str(not default).lower()
    return str(default + 1) if isinstance(default, int | float) else "other"


def test_every_flag_of_the_server_is_known() -> None:
    """A flag that a new vLLM brings has no entry yet, and must have one."""
    plugin.register()
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    engine = {f.name for f in dataclasses.fields(AsyncEngineArgs)} - set(FRONTEND)
    parser = compat.serve_arguments().make_arg_parser(FlexibleArgumentParser())
    ours = next(g for g in parser._action_groups if g.title == "KVPolicy")
    flags = {action.dest for action in parser._actions}
    assert set(FRONTEND) <= flags
    unknown = flags - engine - {a.dest for a in ours._group_actions} - PARSERS_OWN
    assert unknown - set(READ) - set(RAYS_OWN) - set(REFUSED) == set()


def test_a_flag_has_one_meaning() -> None:
    names = [*READ, *RAYS_OWN, *REFUSED]
    assert len(names) == len(set(names))
    assert all([*RAYS_OWN.values(), *REFUSED.values()])


@pytest.mark.parametrize("name", READ)
def test_what_is_read_is_read_by_what_ray_calls(name: str) -> None:
    """By ``init_app_state``, which Ray's engine calls, and the two functions that it calls."""
    from vllm.entrypoints.generate import api_router
    from vllm.entrypoints.launchers.api_server import app_state

    sources = [
        inspect.getsource(app_state.init_app_state),
        inspect.getsource(api_router.init_generate_state),
        inspect.getsource(compat.serve_arguments().resolve_default_chat_template_kwargs),
    ]
    read = re.compile(rf'\bargs(\.|, "){name}\b')
    assert any(read.search(source) for source in sources)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_ignored_is_refused(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    file = write_flags(tmp_path, tiny("llama-gqa", tiny_folder), **{name: _value(name)})
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises(UnsupportedError, match=f"{flag} has no effect behind Ray: ") as refused:
        Flags.read(str(file))
    assert REFUSED[name] in str(refused.value)
    assert "secret'" not in str(refused.value)


def test_rays_own_are_left_out(tiny_folder: Path, tmp_path: Path) -> None:
    own = {"host": "0.0.0.0", "port": "8001", "uds": "/tmp/it", "api_server_count": "2"}
    assert set(own) | {"shutdown_timeout"} == set(RAYS_OWN)
    model = tiny("llama-gqa", tiny_folder)
    plain = Flags.read(str(write_flags(tmp_path, model)))
    assert Flags.read(str(write_flags(tmp_path, model, **own))) == plain


def test_what_is_read_goes_to_ray(tiny_folder: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "enable_force_include_usage": True,
        "response_role": "it",
        "fingerprint_mode": "none",
    }
    text = {name: str(value).lower() for name, value in given.items()}
    file = write_flags(tmp_path, tiny("llama-gqa", tiny_folder), **text)
    assert given.items() <= Flags.read(str(file)).engine_kwargs.items()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"enable_log_outputs": "true"}, "--enable-log-outputs requires --enable-log-requests"),
        ({"enable_auto_tool_choice": "true"}, "requires --tool-call-parser"),
    ],
)
def test_what_vllm_serve_refuses_is_refused(
    flags: dict[str, str], said: str, tiny_folder: Path, tmp_path: Path
) -> None:
    file = write_flags(tmp_path, tiny("llama-gqa", tiny_folder), **flags)
    with pytest.raises(UnsupportedError, match=f"{file}: .*{said}"):
        Flags.read(str(file))


def test_one_name(tiny_folder: Path, tmp_path: Path) -> None:
    names = {"served_model_name": "[tiny, small]"}
    file = write_flags(tmp_path, tiny("llama-gqa", tiny_folder), **names)
    with pytest.raises(PolicyError, match=r"--served-model-name: .* allowed: one name"):
        Flags.read(str(file))
