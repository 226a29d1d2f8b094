"""A server's verdict on a model, without loading its weights."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vllm_sink import compat
from vllm_sink.cache.stream_reservations import streams_that_fit
from vllm_sink.config.admission import AdmissionConfig
from vllm_sink.config.kv_policy import CONFIG_KEY, KVPolicy, policy_of
from vllm_sink.errors import PolicyError, UnsupportedError
from vllm_sink.policy import sink_blocks
from vllm_sink.startup import features, models, pool_size, resolve
from vllm_sink.startup.flags import FROM_COMMAND_LINE


def parser() -> Any:
    """vLLM's own parser of the flags of ``vllm serve``; ``doctor``'s own flags are not in it."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    made = FlexibleArgumentParser(
        prog="vllm-sink doctor",
        usage="vllm-sink doctor MODEL [--kv-gib GIB] [--json] [any flag of vllm serve]",
    )
    return compat.serve_arguments().make_arg_parser(made)


def diagnose_command(args: argparse.Namespace, kv_gib: float | None) -> dict[str, Any]:
    """The verdict on a command line of ``vllm serve``; the policy is ``sink`` if it names none.

    Args:
        args: of ``parser``.
        kv_gib: as for ``diagnose``.

    Raises:
        PolicyError: the policy is ``full``, which is none, or its settings are wrong.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    args.model, args.subparser = args.model_tag or args.model, "serve"
    if args.api_server_count is None:
        args.api_server_count = args.data_parallel_size  # as vLLM chooses it
    verdict: dict[str, Any] = {"model": args.model, "supported": False}
    if missing := _missing(args.model):
        return verdict | {"refused": missing}
    if CONFIG_KEY not in (args.additional_config or {}) and not hasattr(args, "kv_policy"):
        args.kv_policy = "sink"
    if refused := features.refused_arguments(args):
        return verdict | {"refused": "\n".join(_all_refusals(args, refused, kv_gib))}
    try:
        compat.serve_arguments().validate_parsed_serve_args(args)
        engine_args = AsyncEngineArgs.from_cli_args(args)
    except (ValueError, TypeError) as error:
        return verdict | {"refused": _first_line(error)}
    except SystemExit as refusal:  # a server exits with one line
        return verdict | {"refused": str(refusal).removeprefix("vllm serve: error: ")}
    FROM_COMMAND_LINE.set(engine_args, False)  # raise errors instead of exiting
    kv_policy = KVPolicy.from_config(engine_args.additional_config[CONFIG_KEY])
    if not kv_policy.active:
        raise PolicyError("--kv-policy", kv_policy.name, "sink or window")
    return _diagnose(engine_args, kv_policy, kv_gib, UsageContext.OPENAI_API_SERVER)


def _all_refusals(
    args: argparse.Namespace, refused: list[features.Feature], kv_gib: float | None
) -> list[str]:
    """Every feature that is refused: as an argument, or by the config that the rest makes.

    Raises:
        PolicyError: as in ``diagnose_command``.
    """
    reasons = features.reasons(args)
    defaults = vars(parser().parse_args([]))
    for field in {field for feature in refused for field in feature.fields} & set(defaults):
        setattr(args, field, defaults[field])
    if features.refused_arguments(args):  # it is not an argument that asks for it
        return reasons
    # What vLLM itself says then may be no more than that an argument lacks the one taken away.
    rest = diagnose_command(args, kv_gib).get("refused", "").splitlines()
    return reasons + [reason for reason in rest if " with --kv-policy: " in reason]


def diagnose(
    model: str, kv_policy: KVPolicy, kv_gib: float | None, **settings: Any
) -> dict[str, Any]:
    """The verdict on ``model`` as plain data.

    Args:
        model: a model folder or name.
        kv_policy: as requested; numbers that are not set are chosen.
        kv_gib: size of the KV pool in GiB; None for the size in vLLM's own arguments, if any.
        settings: further engine arguments, by their Python names.
    """
    from vllm.engine.arg_utils import EngineArgs

    if missing := _missing(model):
        return {"model": model, "supported": False, "refused": missing}
    config = {key: value for key, value in kv_policy.to_config().items() if value is not None}
    engine_args = EngineArgs(model=model, additional_config={CONFIG_KEY: config}, **settings)
    return _diagnose(engine_args, kv_policy, kv_gib, None)


def _diagnose(
    engine_args: Any, kv_policy: KVPolicy, kv_gib: float | None, usage_context: Any
) -> dict[str, Any]:
    verdict: dict[str, Any] = {"model": engine_args.model, "supported": False}
    if kv_gib is not None:
        engine_args.kv_cache_memory_bytes = int(kv_gib * 2**30)
    try:
        features.refuse_arguments(engine_args)
        examined = resolve.read_model(engine_args)
        verdict |= asdict(examined)
        resolved = models.resolve(kv_policy, examined)
        verdict |= {
            "policy": resolved.name,
            "sink_tokens": resolved.sink_tokens,
            "window_tokens": resolved.window,
        }
        vllm_config = engine_args.create_engine_config(usage_context)
    except (PolicyError, UnsupportedError) as error:
        return verdict | {"refused": str(error)}
    except (ValueError, OSError) as error:
        # vLLM's own refusal: an unknown architecture, a missing model.
        return verdict | {"refused": _first_line(error)}
    return verdict | {"supported": True} | _sizes(vllm_config, resolved)


def _sizes(vllm_config: Any, kv_policy: KVPolicy) -> dict[str, Any]:
    block = pool_size.kv_bytes_per_block(vllm_config)
    streaming = pool_size.stream_blocks(vllm_config, kv_policy, 1)
    prefilling = pool_size.stream_blocks(vllm_config, kv_policy, vllm_config.max_in_flight_tokens)
    pool = pool_size.known_pool_bytes(vllm_config)
    cache = vllm_config.cache_config
    admission = AdmissionConfig.from_config(vllm_config.additional_config)
    max_streams = admission.streams_of(vllm_config.scheduler_config.max_num_seqs)
    fit = None
    if pool is not None:
        # One block of the pool is vLLM's null block.
        fit = streams_that_fit(pool // block - 1, admission.stream_share, max_streams, streaming)
    return {
        "dtype": str(vllm_config.model_config.dtype).removeprefix("torch."),
        "block_size": cache.block_size,
        "sink_blocks": sink_blocks(kv_policy.sink_tokens, cache.block_size),
        "max_stream_tokens": _limit(vllm_config),
        "segment_tokens": vllm_config.model_config.max_model_len,
        "kv_bytes_per_token": block // cache.block_size,
        "blocks_per_stream": streaming,
        "blocks_while_prefilling": prefilling,
        "max_in_flight_tokens": vllm_config.max_in_flight_tokens,
        "kv_bytes_per_stream": streaming * block,
        "kv_pool_bytes": pool,
        "stream_share": admission.stream_share,
        "streams_that_fit": fit,
    }


def _limit(vllm_config: Any) -> int | None:
    """Maximum length of a stream in tokens; None if only the client ends it."""
    found = policy_of(vllm_config)
    assert found is not None
    return found.stream_tokens


def _missing(model: str) -> str | None:
    if _names_a_folder(model) and not Path(model).expanduser().is_dir():
        return f"there is no folder {model}"
    return None


def _names_a_folder(model: str) -> bool:
    """Whether this can only be meant as a path; ``organisation/name`` may be a model hub's."""
    return model.startswith(("/", ".", "~")) or ("/" in model and Path(model).parent.is_dir())


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    reasons = [line for line in lines if line.startswith(("Value error", "Assertion"))]
    return (reasons or lines or [type(error).__name__])[0].partition(" [type=")[0]
