"""The flags of ``vllm serve``, and how they reach ``additional_config``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vllm import envs

from vllm_sink.compat.attached import Attached
from vllm_sink.config import admission as admission_config
from vllm_sink.config import tenancy as tenancy_config
from vllm_sink.config.admission import (
    DEFAULT_MAX_UNSENT_MIB,
    DEFAULT_QUEUE_TIMEOUT,
    DEFAULT_STREAM_SHARE,
    require_mib,
    require_seconds,
    require_share,
)
from vllm_sink.config.kv_policy import (
    CONFIG_KEY,
    DEFAULT_SINK_TOKENS,
    POLICY_NAMES,
    SINK_ATTENTION,
    SYSTEM,
)
from vllm_sink.config.middleware import DRAIN_MIDDLEWARE, KEY_MIDDLEWARE, REQUEST_MIDDLEWARE
from vllm_sink.errors import PolicyError, UnsupportedError
from vllm_sink.segments import CHUNK_ROOM
from vllm_sink.startup import features
from vllm_sink.tenancy.keys import keys_of

#: On vLLM's ``EngineArgs``: they came from a command line. Errors are then one line, no traceback.
FROM_COMMAND_LINE = Attached("sink_from_command_line", False)


def _count(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not allowed; allowed: an integer of at least {least}"
            )
        return value

    return parse


def _sink_tokens(text: str) -> int | str:
    if text == SYSTEM:
        return text
    try:
        return _count(0)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or {SYSTEM}") from None


def _number(require: Callable[[str, object], float], flag: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value: object = float(text)
        except ValueError:
            value = text
        try:
            return require(flag, value)
        except PolicyError as error:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not allowed; allowed: {error.allowed}"
            ) from None

    return parse


def _one_of(names: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not allowed; allowed: one of {', '.join(names)}"
            )
        return text

    return parse


def _tenant_label(text: str) -> str:
    try:
        return tenancy_config.require_source("--sink-tenant-label", text)
    except PolicyError as error:
        raise argparse.ArgumentTypeError(
            f"{error.value!r} is not allowed; allowed: {error.allowed}"
        ) from None


#: What is limited by each of these flags.
_LIMIT_FLAGS = {
    "--sink-tenant-max-streams": "Live streams of a tenant on this server",
    "--sink-tenant-max-pinned-tokens": "Sink tokens of a tenant's live requests together",
    "--sink-tenant-max-queued-requests": "Requests of a tenant that have no token yet",
    "--sink-tenant-tokens-per-minute": "Tokens a minute of a tenant's prompts and answers (a "
    "stream goes on, its tenant's next request waits)",
    "--sink-max-pinned-tokens": "Sink tokens of all live requests together",
    "--sink-tokens-per-minute": "Tokens a minute of all tenants together, likewise",
}


def with_flags(
    add_cli_args: Callable[..., Any], _: None, parser: argparse.ArgumentParser
) -> argparse.ArgumentParser:
    """``EngineArgs.add_cli_args`` with a group of this project's flags."""
    parser = add_cli_args(parser)
    group = parser.add_argument_group(
        title="KVPolicy",
        description="Which tokens keep their KV (vllm-sink; StreamingLLM, arXiv 2309.17453).",
    )
    group.add_argument(
        "--kv-policy",
        type=_one_of(POLICY_NAMES),
        metavar="{" + ",".join(POLICY_NAMES) + "}",
        default=argparse.SUPPRESS,  # vLLM's formatter would print None
        help="full: vLLM unchanged. sink: every request keeps the KV of its first "
        "--sink-tokens tokens and of its last --window-tokens tokens, and streams past the "
        "model's context. window: the same without sinks. (default: full)",
    )
    group.add_argument(
        "--sink-tokens",
        type=_sink_tokens,
        metavar="S",
        default=argparse.SUPPRESS,
        help="Tokens at the start of a request that are never evicted. system: of a chat, its "
        f"leading system message, else {DEFAULT_SINK_TOKENS}. A request can name "
        f'its own: "vllm_xargs": {{"sink_tokens": 300}}. (default: {DEFAULT_SINK_TOKENS})',
    )
    group.add_argument(
        "--window-tokens",
        type=_count(1),
        metavar="W",
        default=argparse.SUPPRESS,
        help="Most recent tokens that are kept. (default: half of the model's context, "
        "stated in the log)",
    )
    group.add_argument(
        "--segment-tokens",
        type=_count(1),
        metavar="N",
        default=argparse.SUPPRESS,
        help="Bookkeeping (token lists, block tables) that is kept of a stream; when it is "
        "full, evicted tokens leave it. Bounds no stream and changes no output: that is "
        "--max-model-len, by default without a limit. (default: the model's context and "
        f"{CHUNK_ROOM} more)",
    )
    group.add_argument(
        "--sink-attention",
        type=_one_of(SINK_ATTENTION),
        metavar="{" + ",".join(SINK_ATTENTION) + "}",
        default=argparse.SUPPRESS,
        help="What computes attention. flash: FlashAttention, sinks merged. triton: one fused "
        "kernel. xformers: memory-efficient attention, merged. torch: plain tensors. (default: "
        "auto, by what the GPU and the model allow; the log says which and why)",
    )
    group.add_argument(
        "--sink-default-max-tokens",
        type=_count(1),
        metavar="N",
        default=argparse.SUPPRESS,
        help="Length of an answer whose request names none and does not ask to be endless "
        '("vllm_xargs": {"endless": true}). (default: it ends where the model\'s context does)',
    )
    group.add_argument(
        "--sink-max-streams",
        type=_count(1),
        metavar="N",
        default=argparse.SUPPRESS,
        help="Live streams (endless requests, or with max_tokens past the model's context) of "
        "an engine; more are refused with HTTP 429. (default: --sink-stream-share of "
        "--max-num-seqs, and what fits into that share of the KV pool)",
    )
    group.add_argument(
        "--sink-stream-share",
        type=_number(require_share, "--sink-stream-share"),
        metavar="X",
        default=argparse.SUPPRESS,
        help="Part of the KV pool that can be promised to streams. Other requests may use all "
        f"that streams do not hold yet. (default: {DEFAULT_STREAM_SHARE})",
    )
    group.add_argument(
        "--sink-queue-timeout",
        type=_number(require_seconds, "--sink-queue-timeout"),
        metavar="SECONDS",
        default=argparse.SUPPRESS,
        help="How long a request waits for its KV blocks; then it ends with HTTP 503. "
        f"(default: {DEFAULT_QUEUE_TIMEOUT:g})",
    )
    group.add_argument(
        "--sink-max-unsent-mib",
        type=_number(require_mib, "--sink-max-unsent-mib"),
        metavar="MIB",
        default=argparse.SUPPRESS,
        help="Memory that a stream's answer may take while it waits for its client, which does "
        "not read or wants it in one piece; then the stream ends with what there is. "
        f"(default: {DEFAULT_MAX_UNSENT_MIB:g})",
    )
    group.add_argument(
        "--sink-tenant-label",
        type=_tenant_label,
        metavar="{off,user,key,header:NAME}",
        default=argparse.SUPPRESS,
        help="Who a request's tenant is, by whom /metrics shows streams, blocks and tokens and "
        "who takes turns in the queue: its 'user', which a client writes itself; a header that "
        "a gateway sets; or whose key of --sink-tenant-keys it has. (default: off; key with "
        "such a file)",
    )
    group.add_argument(
        "--sink-max-tenants",
        type=_count(1),
        metavar="N",
        default=argparse.SUPPRESS,
        help="Tenants with a label of their own; all later ones share 'other'. "
        f"(default: {tenancy_config.DEFAULT_MAX_TENANTS})",
    )
    group.add_argument(
        "--sink-tenant-names",
        type=_one_of(tenancy_config.NAMES),
        metavar="{hashed,plain}",
        default=argparse.SUPPRESS,
        help="How /metrics names tenants: by the first 12 hexadecimal digits of their names' "
        "SHA-256, or as they are. (default: hashed)",
    )
    group.add_argument(
        "--sink-tenant-keys",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="YAML with name, keys and limits of each tenant; every route but health and "
        "metrics then needs one of the keys. Read again on change and on SIGHUP.",
    )
    group.add_argument(
        "--sink-isolate-tenants",
        action="store_true",
        default=argparse.SUPPRESS,
        help="No tenant's cached prefixes serve another (vLLM's cache_salt): no time to the "
        "first token tells what others said.",
    )
    for flag, what in _LIMIT_FLAGS.items():
        group.add_argument(
            flag,
            type=_count(int("minute" in flag)),
            metavar="N",
            default=argparse.SUPPRESS,
            help=f"{what}; more is refused with HTTP 429. (default: any number)",
        )
    group.add_argument(
        "--sink-require-api-key",
        action="store_true",
        default=argparse.SUPPRESS,
        help="Do not start without an API key (--api-key, or VLLM_API_KEY): a server whose "
        "secret is missing must not be open to all.",
    )
    return parser


def with_policy_from_flags(
    from_cli_args: Callable[..., Any], cls: type, args: argparse.Namespace
) -> Any:
    """``EngineArgs.from_cli_args`` that carries the flags into ``additional_config``."""
    engine_args = from_cli_args(args)
    FROM_COMMAND_LINE.set(engine_args, True)
    given = _given(args, _POLICY_FLAGS)
    if given:
        config = dict(engine_args.additional_config or {})
        before = config.get(CONFIG_KEY, {})
        before = {"name": before} if isinstance(before, str) else before
        if "name" not in {**before, **given}:
            flag = _POLICY_FLAGS[next(iter(given))]
            raise SystemExit(f"vllm serve: error: {flag} needs --kv-policy sink or window")
        config[CONFIG_KEY] = {**before, **given}
        engine_args.additional_config = config
    _carry(args, engine_args, admission_config.CONFIG_KEY, admission_config.FLAGS)
    tenancy = _read_tenancy_flags(args, engine_args)
    if _has_policy(engine_args.additional_config):
        _refuse_arguments(args)
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


def _refuse_arguments(args: argparse.Namespace) -> None:
    try:
        features.refuse_arguments(args)
    except UnsupportedError as error:
        raise SystemExit(f"vllm serve: error: {error}") from None


def _has_policy(additional_config: Any) -> bool:
    """Whether a policy was asked for; whether it is one that there is, is seen later."""
    asked = (additional_config or {}).get(CONFIG_KEY, "full")
    return (asked.get("name") if isinstance(asked, Mapping) else asked) != "full"


#: Fields of the policy and the flags that set them.
_POLICY_FLAGS = {
    "name": "--kv-policy",
    "sink_tokens": "--sink-tokens",
    "window_tokens": "--window-tokens",
    "sink_attention": "--sink-attention",
    "segment_tokens": "--segment-tokens",
}


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


def _read_tenancy_flags(args: argparse.Namespace, engine_args: Any) -> tenancy_config.TenancyConfig:
    _carry(args, engine_args, tenancy_config.CONFIG_KEY, tenancy_config.FLAGS)
    try:
        asked = tenancy_config.TenancyConfig.from_config(engine_args.additional_config)
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


def require_api_key(args: argparse.Namespace, tenancy: tenancy_config.TenancyConfig) -> None:
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
