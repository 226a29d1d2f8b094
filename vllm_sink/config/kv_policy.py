"""The KV policy of an engine: what a server was started with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vllm_sink.config.sections import require_int
from vllm_sink.errors import PolicyError
from vllm_sink.policy import StreamPolicy

PolicyName = Literal["full", "window", "sink"]
POLICY_NAMES: tuple[PolicyName, ...] = get_args(PolicyName)

#: The paper's choice: four sink tokens are enough for every model it looked at (Table 2).
DEFAULT_SINK_TOKENS = 4

#: In place of a number: as many as the leading system message of a chat has.
SYSTEM = "system"

#: Ways to compute attention that can be asked for; vllm_sink.attention.providers says what each is.
SINK_ATTENTION = ("auto", "flash", "triton", "xformers", "torch")

#: The key of ``additional_config`` that carries the policy to every process.
CONFIG_KEY = "kv_policy"


@dataclass(frozen=True)
class KVPolicy:
    """What a server was started with.

    Attributes:
        name: ``full`` (vLLM unchanged), ``window`` (no sinks) or ``sink``.
        sink_tokens: ``S`` for requests that do not name their own; 0 for ``window``.
        window_tokens: ``W`` for requests that do not name their own, and the most that one may
            name; None until chosen from the model's context.
        native_context: positions that the model has learned; None until known.
        replaces_sliding_window: the model's own, uniform sliding window gives way to the policy.
        sink_attention: the attention provider that was asked for, or ``auto``.
        provider: the one that computes attention; chosen when the engine's config is made.
        segment_tokens: bookkeeping that vLLM keeps of a stream; None until chosen.
        stream_tokens: the most tokens that a stream may have; None where only the client ends it.
        pins_system: a chat that names no ``S`` pins its leading system message, if it has one.
        true_positions: **not the policy**: sinks stay at their true distance from the query, as if
            section 3.2 of the paper did not say otherwise. For ``benchmarks.paper``, which measures
            what that costs; no flag sets it.
    """

    name: PolicyName
    sink_tokens: int = DEFAULT_SINK_TOKENS
    window_tokens: int | None = None
    native_context: int | None = None
    replaces_sliding_window: bool = False
    sink_attention: str = "auto"
    provider: str = "torch"
    segment_tokens: int | None = None
    stream_tokens: int | None = None
    pins_system: bool = False
    true_positions: bool = False

    @property
    def active(self) -> bool:
        return self.name != "full"

    @property
    def window(self) -> int:
        """``W``, once it is resolved."""
        if self.window_tokens is None:
            raise PolicyError("window_tokens", None, "a number: the policy is not resolved yet")
        return self.window_tokens

    @property
    def default(self) -> StreamPolicy:
        """``S`` and ``W`` of a request that names neither."""
        return StreamPolicy(self.sink_tokens, self.window)

    @property
    def segment(self) -> int:
        """Tokens of a segment, once they are chosen."""
        if self.segment_tokens is None:
            raise PolicyError("segment_tokens", None, "a number: the policy is not resolved yet")
        return self.segment_tokens

    @property
    def native(self) -> int:
        """The native context, once it is known."""
        if self.native_context is None:
            raise PolicyError("native_context", None, "a number: the policy is not resolved yet")
        return self.native_context

    def to_config(self) -> dict[str, Any]:
        """A plain mapping: vLLM hashes ``additional_config`` as JSON and pickles it to workers."""
        return dict(vars(self))

    @classmethod
    def from_config(cls, config: object) -> KVPolicy:
        """Read the policy out of ``additional_config["kv_policy"]``.

        Raises:
            PolicyError: a field is unknown, of the wrong type or out of range.
        """
        if isinstance(config, str):
            config = {"name": config}
        if not isinstance(config, Mapping):
            raise PolicyError(CONFIG_KEY, config, 'a mapping such as {"name": "sink"}')
        known = set(cls.__dataclass_fields__)
        for key in config:
            if key not in known:
                raise PolicyError(f"{CONFIG_KEY}.{key}", config[key], f"one of {sorted(known)}")
        name = config.get("name", "sink")
        if name not in POLICY_NAMES:
            raise PolicyError("--kv-policy", name, f"one of {', '.join(POLICY_NAMES)}")
        default_sinks = DEFAULT_SINK_TOKENS if name == "sink" else 0
        sinks = config.get("sink_tokens")
        pins_system = sinks == SYSTEM or bool(config.get("pins_system", False))
        if name == "window" and pins_system:
            raise PolicyError("--sink-tokens", SYSTEM, "0 with --kv-policy window, which has none")
        if sinks is None or sinks == SYSTEM:
            sinks = default_sinks
        sinks = require_int("--sink-tokens", sinks, 0)
        if name == "window" and sinks:
            raise PolicyError("--sink-tokens", sinks, "0 with --kv-policy window, which has none")
        window = config.get("window_tokens")
        if window is not None:
            window = require_int("--window-tokens", window, 1)
        segment = config.get("segment_tokens")
        if segment is not None:
            segment = require_int("--segment-tokens", segment, 1)
        return cls(
            name=name,
            sink_tokens=sinks,
            pins_system=pins_system,
            window_tokens=window,
            native_context=config.get("native_context"),
            replaces_sliding_window=bool(config.get("replaces_sliding_window", False)),
            sink_attention=_attention(config.get("sink_attention", "auto")),
            provider=str(config.get("provider", "torch")),
            segment_tokens=segment,
            stream_tokens=config.get("stream_tokens"),
            true_positions=bool(config.get("true_positions", False)),
        )


def _attention(value: object) -> str:
    if value not in SINK_ATTENTION:
        allowed = ", ".join(SINK_ATTENTION)
        raise PolicyError("--sink-attention", value, f"one of {allowed}")
    return str(value)


def policy_of(vllm_config: Any) -> KVPolicy | None:
    """The policy of an engine, by its ``VllmConfig``; None where vLLM is unchanged."""
    config = vllm_config.additional_config
    if not isinstance(config, Mapping) or CONFIG_KEY not in config:
        return None
    found = KVPolicy.from_config(config[CONFIG_KEY])
    return found if found.active else None
