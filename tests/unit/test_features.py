"""The table of features: complete, current, and each refusal as stated."""

from __future__ import annotations

import dataclasses
import shutil
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.models.factory import make_tiny
from vllm_sink import compat
from vllm_sink.commands import diagnosis
from vllm_sink.commands import verdict as verdicts
from vllm_sink.compat import probes
from vllm_sink.errors import UnsupportedError
from vllm_sink.plugin import register
from vllm_sink.startup import features
from vllm_sink.startup.features import Feature, refuse
from vllm_sink.startup.features.values import text_of
from vllm_sink.startup.flags import FROM_COMMAND_LINE

ROOT = Path(__file__).parents[2]
REFUSED = {feature.name: feature for feature in features.ENGINE if feature.refused}


def _fields() -> set[str]:
    """Of vLLM's command line, sampling parameters and prompts; this project's own left out."""
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.inputs import EmbedsPrompt, TextPrompt, TokensPrompt
    from vllm.sampling_params import BeamSearchParams
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    arguments = compat.serve_arguments()
    parser = arguments.make_arg_parser(FlexibleArgumentParser())
    written = {
        action.dest
        for group in parser._action_groups
        for action in group._group_actions
        if group.title != "KVPolicy" and action.dest != "help"
    }
    classes = {
        field.name
        for args in (AsyncEngineArgs, arguments.FrontendArgs)
        for field in dataclasses.fields(args)
    }
    requests = {*SamplingParams.__struct_fields__, *BeamSearchParams.__struct_fields__}
    prompts = {
        name
        for prompt in (TextPrompt, TokensPrompt, EmbedsPrompt)
        for name in prompt.__annotations__
    }
    return written | classes | requests | prompts


def test_every_field_is_looked_at() -> None:
    """A field that a new vLLM brings belongs in a row of the table, or in a group without one."""
    register()
    assert features.unclassified(_fields()) == set()
    assert features.unclassified({"no_such_field"}) == {"no_such_field"}


@pytest.mark.skipif(probes.version() != "0.32.0", reason="the table is of vLLM 0.32")
def test_every_field_is_there() -> None:
    named = {field for feature in features.FEATURES for field in feature.fields}
    grouped = {field for _, group in features.NO_BEARING for field in group.split()}
    assert (named | grouped) - _fields() == set()
    assert named & grouped == set()


@pytest.mark.parametrize("feature", features.FEATURES, ids=lambda f: f.name)
def test_a_row_is_held_or_refused(feature: Feature) -> None:
    if feature.refused:
        assert feature.why
        assert feature.allowed
        assert feature.flags
        assert bool(feature.set_in or feature.set_by) != bool(feature.elsewhere)
        return
    path, _, function = feature.test.partition("::")
    assert f"def {function}(" in (ROOT / path).read_text()


def test_the_page_is_what_the_table_says() -> None:
    """``make features`` writes it."""
    assert features.PAGE.read_text() == features.render()


# -- refusals -------------------------------------------------------------------------------------

#: Flags that ask for what is refused, as for ``vllm serve``; the model's recipe where it matters.
ASKED = {
    "speculative decoding": "--spec-method ngram --spec-tokens 2",
    "KV connectors and offloading": "--kv-offloading-size 1",
    "KV events": "--kv-events-config.enable_kv_cache_events true",
    "decode context parallelism": "--decode-context-parallel-size 2 --tensor-parallel-size 2",
    "prefill context parallelism": "--prefill-context-parallel-size 2",
    "pipeline parallelism": "--pipeline-parallel-size 2",
    "KV of another type than the model's": "--kv-cache-dtype bfloat16",
    "KV sharing in prefill": "--kv-sharing-fast-prefill",
    "the Rust front end": "",
    "gRPC": "--grpc",
    "logits processors": "--logits-processors some:Processor",
    "installed logits processors": "",
    "watermarks in the text": '--watermark-config {"algorithm":"gumbel","key":1}',
    "trace replay": "--enable-trace-replay",
    "sampling masks": "--return-sampling-mask --logprobs-mode processed_logprobs",
    "routed experts in the answer": "--enable-return-routed-experts",
    "chunked prefill off": "--no-enable-chunked-prefill",
    "admission by the first chunk": "--no-scheduler-reserve-full-isl",
    "diffusion models": '--diffusion-config {"canvas_length":32}',
    "transfer of encoder caches": (
        '--ec-transfer-config {"ec_connector":"ECExampleConnector","ec_role":"ec_consumer"}'
    ),
    "new weights in a running server": '--weight-transfer-config {"backend":"nccl"}',
    "weights in CPU memory": "--cpu-offload-gb 1",
    "several machines": "--nnodes 2 --tensor-parallel-size 2 --distributed-executor-backend mp",
    "an engine without a front end": "--headless",
    "fault tolerance": "--enable-fault-tolerance --data-parallel-rank 0",
    "fully sharded LoRA": "--enable-lora --fully-sharded-loras",
    "micro-batches": "--enable-dbo",
    "sleep mode": "--enable-sleep-mode",
    "expert parallelism": "--enable-expert-parallel",
    "sampling split over ranks": "--enable-batch-sharded-sampling",
    "prefix hits within a block": "--prefix-match-unit 16",
    "retention of prefixes in the cache": "--prefix-cache-retention-interval 64",
    "the model's own window off": "--disable-sliding-window",
    "Transformers' model in vLLM's place": "--model-impl transformers",
    "another class for an architecture": (
        '--model-class-overrides {"LlamaForCausalLM":'
        '"vllm.model_executor.models.llama:LlamaForCausalLM"}'
    ),
    "plugins for prompts": "--io-processor-plugin some",
    "lm-format-enforcer": "--structured-outputs-config.backend lm-format-enforcer",
    "only tokens in, tokens out": "--tokens-only",
    "tools that the server calls": "--tool-server demo",
    "another attention backend": "--attention-backend TORCH_SDPA",
    "another attention backend, by its config": "--attention-config.backend TORCH_SDPA",
    "another scheduler": "--scheduler-cls vllm.v1.core.sched.scheduler.Scheduler",
    "another worker": "--worker-cls some.Worker",
    "pooling": "--runner pooling",
}
#: What an error states of them: the row's flags with their values; here where that is not all of
#: ``ASKED``, word by word.
STATED = {
    "KV events": '--kv-events-config {"enable_kv_cache_events": true, "publisher": "zmq"}',
    "decode context parallelism": "--decode-context-parallel-size 2",
    "the Rust front end": "VLLM_USE_RUST_FRONTEND=1",
    "installed logits processors": "vllm.logits_processors=some",
    "watermarks in the text": '--watermark-config {"algorithm": "gumbel", "key": "***"}',
    "sampling masks": "--return-sampling-mask",
    "diffusion models": '--diffusion-config {"canvas_length": 32}',
    "transfer of encoder caches": (
        '--ec-transfer-config {"ec_connector": "ECExampleConnector", "ec_role": "ec_consumer"}'
    ),
    "new weights in a running server": '--weight-transfer-config {"backend": "nccl"}',
    "several machines": "--nnodes 2",
    "fault tolerance": "--enable-fault-tolerance",
    "fully sharded LoRA": "--fully-sharded-loras",
    "another class for an architecture": (
        '--model-class-overrides {"LlamaForCausalLM": '
        '"vllm.model_executor.models.llama:LlamaForCausalLM"}'
    ),
    "lm-format-enforcer": "--structured-outputs-config.backend=lm-format-enforcer",
    "another attention backend, by its config": '--attention-config {"backend": "TORCH_SDPA"}',
}
RECIPES = {"decode context parallelism": "falcon-rope-mqa"}
#: Configs that cannot be made here, and ordinary ones beside them: a part, a field, both values.
HAND_MADE: dict[str, tuple[str, str, Any, Any]] = {
    "prefill context parallelism": ("parallel_config", "prefill_context_parallel_size", 2, 1),
    "trace replay": ("model_config", "enable_trace_replay", True, False),
    "sampling masks": ("model_config", "return_sampling_mask", True, False),
    "routed experts in the answer": ("aux_output_config", "enabled", True, False),
    "micro-batches": ("parallel_config", "enable_dbo", True, False),
    "sleep mode": ("model_config", "enable_sleep_mode", True, False),
    "expert parallelism": ("parallel_config", "enable_expert_parallel", True, False),
    "fault tolerance": ("parallel_config", "enable_fault_tolerance", True, False),
    "sampling split over ranks": ("parallel_config", "enable_batch_sharded_sampling", True, False),
}


def test_every_refusal_is_tried() -> None:
    assert set(ASKED) == set(REFUSED)
    assert set(STATED) < set(ASKED)
    assert {*HAND_MADE, "watermarks in the text"} == {
        name for name, feature in REFUSED.items() if feature.hand_made
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models without weights: what is refused is refused before any are read."""
    register()
    root, found = tmp_path_factory.mktemp("weightless"), {}
    for arch in {"llama-gqa", *RECIPES.values()}:
        found[arch] = make_tiny(arch, root / arch)
        (found[arch] / "model.safetensors").unlink()
    return found


def _parse(folder: Path, flags: str) -> Namespace:
    args: Namespace = diagnosis.parser().parse_args(
        [
            str(folder),
            *("--kv-policy", "sink", "--window-tokens", "60", "--dtype", "float32"),
            *flags.split(),
        ]
    )
    return args


def _refusal(args: Namespace) -> str:
    """What ``vllm serve`` says."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    args.model = args.model_tag
    try:
        engine_args = AsyncEngineArgs.from_cli_args(args)
        FROM_COMMAND_LINE.set(engine_args, False)
        engine_args.create_engine_config()
    except (UnsupportedError, SystemExit) as refusal:
        return str(refusal)
    raise AssertionError("it is not refused")


@pytest.mark.parametrize("name", ASKED)
def test_refused_at_start_up_and_by_doctor(
    name: str, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feature, folder = REFUSED[name], models[RECIPES.get(name, "llama-gqa")]
    if name == "the Rust front end":
        monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    if name == "installed logits processors":
        installed = tmp_path / "some-1.dist-info"
        installed.mkdir()
        (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: some\nVersion: 1\n")
        (installed / "entry_points.txt").write_text("[vllm.logits_processors]\nsome = some:P\n")
        monkeypatch.syspath_prepend(tmp_path)
    said = _refusal(_parse(folder, ASKED[name]))
    stated = said.removeprefix("vllm serve: error: ")
    flags = STATED.get(name, ASKED[name])
    assert stated == f"{flags} with --kv-policy: {feature.why}; allowed: {feature.allowed}"
    verdict = diagnosis.diagnose_command(_parse(folder, ASKED[name]), None)
    assert not verdict["supported"]
    assert verdict["refused"] == stated


def test_doctor_names_every_refused_flag(models: dict[str, Path]) -> None:
    """Those that are refused as arguments, and those that the config made of the rest asks for."""
    flags = "--grpc --headless --kv-sharing-fast-prefill --no-enable-chunked-prefill"
    verdict = diagnosis.diagnose_command(_parse(models["llama-gqa"], flags), None)
    assert not verdict["supported"]
    reasons = verdict["refused"].splitlines()
    for flag in flags.split():
        assert len([r for r in reasons if r.startswith(f"{flag} with --kv-policy: ")]) == 1
    assert len(reasons) == 4
    shown = verdicts.render(verdict).splitlines()
    assert shown == [f"{models['llama-gqa']}: refused", *(f"  {reason}" for reason in reasons)]


def test_a_server_names_every_refused_argument(models: dict[str, Path]) -> None:
    said = _refusal(_parse(models["llama-gqa"], "--grpc --headless"))
    assert "--grpc with --kv-policy: " in said
    assert "--headless with --kv-policy: " in said


@pytest.mark.parametrize("name", HAND_MADE)
def test_refused_by_a_config_made_by_hand(name: str) -> None:
    """As in Python; without the setting it is not refused."""
    asked, (part, field, wanted, ordinary) = REFUSED[name].set_in, HAND_MADE[name]
    assert asked is not None
    for value in (wanted, ordinary):
        config = {"model_config": SimpleNamespace(), part: SimpleNamespace(**{field: value})}
        assert asked(SimpleNamespace(**config)) is (value is wanted)


def test_a_watermark_is_refused_by_a_config_made_by_hand() -> None:
    asked = REFUSED["watermarks in the text"].set_in
    assert asked is not None
    assert asked(SimpleNamespace(watermark_config=object()))
    assert not asked(SimpleNamespace(watermark_config=None))


def test_a_plain_server_is_not_refused(models: dict[str, Path], tmp_path: Path) -> None:
    """Doctor's verdict is the same with or without front-end flags; only loading needs weights."""
    folder = tmp_path / "model"
    shutil.copytree(models["llama-gqa"], folder)
    for flags in ("", "--port 8001 --enable-auto-tool-choice --tool-call-parser hermes"):
        verdict = diagnosis.diagnose_command(_parse(folder, flags), 1.0)
        assert verdict["supported"], verdict
        assert (verdict["sink_tokens"], verdict["window_tokens"]) == (4, 60)
        assert verdict["kv_pool_bytes"] == 2**30


# -- what an error states -------------------------------------------------------------------------


def test_what_vllm_chose_is_stated_by_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """No flag of the row was given: a checkpoint can ask for another type of KV by itself."""
    row = REFUSED["KV of another type than the model's"]
    monkeypatch.setattr(refuse, "ENGINE", (row,))
    config = SimpleNamespace(
        model_config=SimpleNamespace(dtype="torch.bfloat16"),
        cache_config=SimpleNamespace(cache_dtype="fp8"),
    )
    with pytest.raises(UnsupportedError) as refused:
        features.refuse_config(config, Namespace())
    assert str(refused.value) == (
        "--kv-cache-dtype (cache_config.cache_dtype=fp8) with --kv-policy: "
        f"{row.why}; allowed: {row.allowed}"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2, "2"),
        (1.0, "1"),
        (["a", "b"], "a b"),
        ({"api_key": "hidden", "n": 1}, '{"api_key": "***", "n": 1}'),
        ("x" * 300, "x" * 200 + "..."),
    ],
)
def test_a_value_as_an_error_states_it(value: object, text: str) -> None:
    assert text_of(value) == text
