"""What this package reads of vLLM while it runs, and what it wraps, is listed in ``hooks``."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.compat.record import recorded
from tests.e2e.engines import tiny
from vllm_sink.compat import hooks, probes
from vllm_sink.compat.source import Module, Source

OWN = Source(Path(probes.__file__).parents[1])
VLLM = probes.installed()
#: Hooks into the V2 runner, which needs a GPU: ``tests/gpu/test_reads.py``.
V2 = "vllm.v1.worker.gpu."


@pytest.fixture(scope="module")
def in_engine(tiny_folder: Path) -> dict[str, Any]:
    """Engines in the process that records, scheduled in both ways."""
    return recorded(tiny("llama-gqa", tiny_folder), "engine", "ahead")


@pytest.fixture(scope="module")
def in_front(tiny_folder: Path) -> dict[str, Any]:
    """The front end: ``AsyncLLM``, and a server."""
    return recorded(tiny("llama-gqa", tiny_folder), "async", "server")


@pytest.mark.slow
def test_whatever_an_engine_reads_is_listed(in_engine: dict[str, Any]) -> None:
    assert in_engine["unlisted"] == {}
    # Detects a recorder that no longer sees anything.
    for name in (
        "vllm.v1.request:Request._all_token_ids",
        "vllm.v1.core.sched.output:CachedRequestData.resumed_req_ids",
        "vllm.v1.engine:EngineCoreRequest.sampling_params",
        "vllm.v1.worker.gpu_input_batch:CachedRequestState.block_ids",
        "vllm.v1.worker.gpu_input_batch:InputBatch.remove_request",
    ):
        assert name in in_engine["read"]


@pytest.mark.slow
def test_whatever_a_server_reads_is_listed(in_front: dict[str, Any]) -> None:
    assert in_front["unlisted"] == {}
    for name in (
        "vllm.v1.engine.async_llm:AsyncLLM.vllm_config",
        "vllm.v1.engine.output_processor:RequestOutputCollector.output",
        "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat.parser_cls",
        "vllm.entrypoints.generate.beam_search.online:BeamSearchOnlineMixin.engine_client",
    ):
        assert name in in_front["read"]


@pytest.mark.slow
def test_whatever_is_listed_is_installed(
    in_engine: dict[str, Any], in_front: dict[str, Any]
) -> None:
    installed = {*in_engine["wrapped"], *in_front["wrapped"]}
    listed = {hook.target for hook in hooks.WRAPS}
    assert installed <= listed
    assert {target for target in listed - installed if not target.startswith(V2)} == set()


def test_nothing_is_installed_in_any_other_way() -> None:
    """Only ``compat.install`` replaces attributes of classes and modules, by the table."""
    for module in OWN.modules():
        if module.name == "vllm_sink.compat.install":
            continue
        imported = {n for node in ast.walk(module.tree) for n in _names_imported(node)}
        assert "wrapt" not in imported, module.name
        names = dict(_imported(module))
        for node in ast.walk(module.tree):
            match node:
                case ast.Call(func=ast.Name(id="setattr"), args=[ast.Name(id=owner), *_]):
                    assert owner not in names, f"{module.name}:{node.lineno}"
                case ast.Attribute(value=ast.Name(id=owner), ctx=ast.Store()):
                    assert owner not in names, f"{module.name}:{node.lineno}"


def test_every_wrapper_is_there_and_is_called_as_the_table_says() -> None:
    for hook in (*hooks.WRAPS, *hooks.RAY_WRAPS):
        module, _, name = hook.by.partition(":")
        if hook.kind != "wraps":
            assert OWN.find_class(module, name) is not None, hook.by
            continue
        function = OWN.function(module, name)
        assert function is not None, hook.by
        # After the wrapped function and its object come the parameters that the hook names.
        named = [p for p in function.parameters if p in hook.parameters]
        assert function.open or set(named) == set(hook.parameters), hook.by
        assert hook.until, hook.target
        assert hook.places, hook.target


def _names_imported(node: ast.AST) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name.partition(".")[0] for alias in names]
        case ast.ImportFrom(module=str(module)):
            return [module.partition(".")[0]]
    return []


# -- reads of a class or of a module, which cannot be recorded -------------------------------------


def asked() -> Iterator[tuple[str, str]]:
    """``Name.attribute`` where ``Name`` was imported from vLLM: hook and place."""
    for module in OWN.modules():
        names = dict(_imported(module))
        for node in ast.walk(module.tree):
            match node:
                case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name in names:
                    yield f"{names[name]}{attribute}", f"{module.file.name}:{node.lineno}"


def _imported(module: Module) -> Iterator[tuple[str, str]]:
    """Names that stand for a class or a module of vLLM's, and how a hook on them begins."""
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] != "vllm":
            continue
        for alias in node.names:
            name = alias.asname or alias.name
            if VLLM.module(f"{node.module}.{alias.name}") is not None:
                yield name, f"{node.module}.{alias.name}:"
            elif VLLM.find_class(str(node.module), alias.name) is not None:
                yield name, defined(f"{node.module}:{alias.name}.")


def defined(target: str) -> str:
    """A target with the module that defines its class, which others may import it from."""
    module, _, qualname = target.partition(":")
    owner, dot, name = qualname.partition(".")
    found = VLLM.find_class(module, owner)
    return target if found is None else f"{found[0].name}:{owner}{dot}{name}"


def test_whatever_is_asked_of_a_class_or_a_module_is_listed() -> None:
    public = {defined(target) for target in hooks.PUBLIC}
    targets = [hook.target for hook in (*hooks.READS, *hooks.WRAPS)]
    listed = {*targets, *map(defined, targets)}
    found = {
        target: place
        for target, place in asked()
        if target not in listed
        and target.rpartition(".")[0] not in public
        and not target.rpartition(".")[2].startswith(("__", "sink_"))
    }
    assert found == {}
    assert len(list(asked())) > 10


# -- Ray ------------------------------------------------------------------------------------------


def test_whatever_is_overridden_of_ray_is_listed() -> None:
    """Methods of the subclasses that Ray's class has as well."""
    pytest.importorskip("ray", reason="ray is not installed (the extra 'ray')")
    ray = probes.installed_ray()
    assert ray is not None
    overridden = set()
    for module in OWN.modules():
        if not module.name.startswith("vllm_sink.serving.ray"):
            continue
        for cls in [node for node in module.tree.body if isinstance(node, ast.ClassDef)]:
            for base in [b for b in cls.bases if isinstance(b, ast.Name)]:
                where = module.imported(base.id)
                if where is None or where[0].partition(".")[0] != "ray":
                    continue
                for method in cls.body:
                    if (
                        isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef)
                        and not method.name.startswith("__")
                        and ray.function(where[0], f"{where[1]}.{method.name}") is not None
                    ):
                        overridden.add(f"{where[0]}:{where[1]}.{method.name}")
    assert overridden == {hook.target for hook in hooks.RAY_OVERRIDES}
