"""The flags of ``vllm serve``, and how they reach ``additional_config``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from typing import Any

from vllm import envs

from vllm_sink.compat.attached import Attached
from vllm_sink.config import admission as admission_config
from vllm_sink.config import kv_policy as policy_config
from vllm_sink.config import tenancy as tenancy_config
from vllm_sink.config.admission import AdmissionConfig
from vllm_sink.config.kv_policy import CONFIG_KEY, KVPolicy
from vllm_sink.config.middleware import DRAIN_MIDDLEWARE, KEY_MIDDLEWARE, REQUEST_MIDDLEWARE
from vllm_sink.config.tenancy import TenancyConfig
from vllm_sink.errors import PolicyError, UnsupportedError
from vllm_sink.startup import features
from vllm_sink.startup.arguments import add_flags
from vllm_sink.tenancy.keys import keys_of

#: On vLLM's ``EngineArgs``: they came from a command line. Errors are then one line, no traceback.
FROM_COMMAND_LINE = Attached("sink_from_command_line", False)


def with_flags(
    add_cli_args: Callable[..., Any], _: None, parser: argparse.ArgumentParser
) -> argparse.ArgumentParser:
    """``EngineArgs.add_cli_args`` with a group of this project's flags."""
    parser = add_cli_args(parser)
    group = parser.add_argument_group(
        title="KVPolicy",
        description="Which tokens keep their KV (vllm-sink; StreamingLLM, arXiv 2309.17453).",
    )
    for config in (KVPolicy, AdmissionConfig, TenancyConfig):
        add_flags(group, config)
    return parser


def with_policy_from_flags(
    from_cli_args: Callable[..., Any], cls: type, args: argparse.Namespace
) -> Any:
    """``EngineArgs.from_cli_args`` that carries the flags into ``additional_config``."""
    given = _given(args, policy_config.FLAGS)
    if given.get("name", "full") != "full" or _has_policy(getattr(args, "additional_config", None)):
        refusal = _refusal_of(args)  # before vLLM writes into them
    else:
        refusal = None
    engine_args = from_cli_args(args)
    FROM_COMMAND_LINE.set(engine_args, True)
    if given:
        config = dict(engine_args.additional_config or {})
        before = config.get(CONFIG_KEY, {})
        before = {"name": before} if isinstance(before, str) else before
        if "name" not in {**before, **given}:
            flag = policy_config.FLAGS[next(iter(given))]
            raise SystemExit(f"vllm serve: error: {flag} needs --kv-policy sink or window")
        config[CONFIG_KEY] = {**before, **given}
        engine_args.additional_config = config
    _carry(args, engine_args, admission_config.CONFIG_KEY, admission_config.FLAGS)
    tenancy = _read_tenancy_flags(args, engine_args)
    if _has_policy(engine_args.additional_config):
        if refusal is not None:
            raise SystemExit(f"vllm serve: error: {refusal}")
        # The last is outermost: a response that drains is one that was let in.
        _add_middleware(args, REQUEST_MIDDLEWARE)
        _add_middleware(args, DRAIN_MIDDLEWARE)
        if tenancy.keys_file is not None:
            _add_middleware(args, KEY_MIDDLEWARE)
    if hasattr(args, "middleware"):  # a server's arguments, not an engine's alone
        require_api_key(args, tenancy)
    # With --api-server-count, vLLM hands the arguments to processes that read them before any
    # plugin is loaded there: they must find the policy where vLLM itself looks.
    args.additional_config = engine_args.additional_config
    return engine_args


def _refusal_of(args: argparse.Namespace) -> UnsupportedError | None:
    """Why a policy is refused with these arguments, where it is."""
    try:
        features.refuse_arguments(args)
    except UnsupportedError as error:
        return error
    return None


def _has_policy(additional_config: Any) -> bool:
    """Whether a policy was asked for; whether it is one that there is, is seen later."""
    asked = (additional_config or {}).get(CONFIG_KEY, "full")
    return (asked.get("name") if isinstance(asked, Mapping) else asked) != "full"


def _given(args: argparse.Namespace, flags: Mapping[str, str]) -> dict[str, Any]:
    """What was given of ``flags``, by field."""
    names = {field: flag.removeprefix("--").replace("-", "_") for field, flag in flags.items()}
    values = {field: getattr(args, name, None) for field, name in names.items()}
    return {field: value for field, value in values.items() if value is not None}


def _carry(args: argparse.Namespace, engine_args: Any, key: str, flags: Mapping[str, str]) -> bool:
    """Take what was given of ``flags`` into ``additional_config[key]``; whether anything was.

    Raises:
        SystemExit: something was, and no policy.
    """
    given = _given(args, flags)
    if not given:
        return False
    config = dict(engine_args.additional_config or {})
    if CONFIG_KEY not in config:
        flag = flags[next(iter(given))]
        raise SystemExit(f"vllm serve: error: {flag} needs --kv-policy sink or window")
    config[key] = {**config.get(key, {}), **given}
    engine_args.additional_config = config
    return True


def _read_tenancy_flags(args: argparse.Namespace, engine_args: Any) -> TenancyConfig:
    _carry(args, engine_args, tenancy_config.CONFIG_KEY, tenancy_config.FLAGS)
    try:
        asked = TenancyConfig.from_config(engine_args.additional_config)
        if asked.keys_file is not None:
            keys_of(asked.keys_file)
    except PolicyError as error:
        raise SystemExit(f"vllm serve: error: {error}") from None
    servers = getattr(args, "api_server_count", None) or 1
    if asked.counts and servers > 1:
        raise SystemExit(
            f"vllm serve: error: --api-server-count: {servers} is not allowed; allowed: 1 with "
            "limits of a tenant, which each API process would count by itself"
        )
    return asked


def require_api_key(args: argparse.Namespace, tenancy: TenancyConfig) -> None:
    """End a server that must have a key and has none, or has one too many.

    Raises:
        SystemExit: naming the flag.
    """
    keys = [k for k in (getattr(args, "api_key", None) or ()) if k]
    own = bool(keys or os.environ.get("VLLM_API_KEY"))
    if tenancy.keys_file is not None:
        if own:
            raise SystemExit(
                "vllm serve: error: --api-key (VLLM_API_KEY) with --sink-tenant-keys is not "
                "allowed; allowed: one of them, since vLLM's key would be wanted beside a tenant's"
            )
        if envs.VLLM_ENABLE_RESPONSES_API_STORE:
            raise SystemExit(
                "vllm serve: error: VLLM_ENABLE_RESPONSES_API_STORE with --sink-tenant-keys is not "
                "allowed: vLLM's store of responses is one for all tenants"
            )
    elif tenancy.require_api_key and not own:
        raise SystemExit(
            "vllm serve: error: --sink-require-api-key: there is no key; allowed: one in "
            "VLLM_API_KEY or --api-key, or --sink-tenant-keys"
        )


def _add_middleware(args: argparse.Namespace, name: str) -> None:
    """By vLLM's own flag: the server's app is made of these arguments later on."""
    if name not in getattr(args, "middleware", [name]):
        args.middleware = [*args.middleware, name]
