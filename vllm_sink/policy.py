"""The two rules of the policy, and nothing else: the only place where they are written.

StreamingLLM (Xiao et al., ICLR 2024, arXiv 2309.17453, section 3.2) for the token at index ``t`` of
a stream with ``S`` sink tokens and a window of ``W`` tokens::

    visible(t)  = {0 .. S-1}  and  {j : t - W < j <= t}
    position    p(t) = min(t, S + W - 1): sinks keep 0 .. S-1, the window follows without a gap
    evicted     e(t) = t - p(t) tokens lie between the sinks and the window

Both depend on ``t`` alone: not on chunk boundaries, batch mates or the block size. ``S`` and ``W``
are a request's own (``StreamPolicy``); the engine has a default of each, and no ``W`` is larger
than the engine's. (The paper's evaluation code with ``start_size = S`` and ``recent_size = R`` is
this policy with ``W = R + 1``: it evicts before it appends.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from vllm_sink.errors import PolicyError

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


class StreamPolicy(NamedTuple):
    """What one stream keeps.

    Attributes:
        sink_tokens: ``S``.
        window_tokens: ``W``, at most the engine's.
    """

    sink_tokens: int
    window_tokens: int

    @property
    def sees_everything_below(self) -> int:
        """A token below this index sees all tokens before it: none is evicted yet."""
        return self.sink_tokens + self.window_tokens


def cache_position(t: int, sink_tokens: int, window_tokens: int) -> int:
    """``p(t)``: where the query of token ``t`` stands inside the cache."""
    return min(t, sink_tokens + window_tokens - 1)


def evicted_tokens(t: int, sink_tokens: int, window_tokens: int) -> int:
    """``e(t)``: how many tokens lie evicted between the sinks and the window of token ``t``."""
    return t - cache_position(t, sink_tokens, window_tokens)


def window_start(t: int, window_tokens: int) -> int:
    """The first index that the window of token ``t`` still holds."""
    return max(0, t - window_tokens + 1)


def cdiv(a: int, b: int) -> int:
    """Ceiling division."""
    return -(-a // b)


def sink_blocks(sink_tokens: int, block_size: int) -> int:
    """Number of leading blocks that a stream pins.

    ::

        [0 .. sink_blocks)              pinned while the stream lives
        [sink_blocks .. window_block)   recycled
        [window_block .. )              the window
    """
    return cdiv(sink_tokens, block_size)


def window_block(computed_tokens: int, window_tokens: int, block_size: int) -> int:
    """The first block that the next token, ``t = computed_tokens``, still reads in its window."""
    return window_start(computed_tokens, window_tokens) // block_size


def max_blocks(
    sink_tokens: int, window_tokens: int, in_flight_tokens: int, total_tokens: int, block_size: int
) -> int:
    """The most blocks that a stream can ever hold at once.

    Args:
        sink_tokens: ``S`` of the request.
        window_tokens: ``W`` of the request.
        in_flight_tokens: most tokens scheduled but not settled; their window is kept whole.
        total_tokens: the stream's largest length, prompt and output together.
        block_size: tokens in a block.
    """
    span = min(window_tokens - 1 + in_flight_tokens, total_tokens)
    # One more block, since the window may begin anywhere inside its first block.
    windowed = cdiv(span, block_size) + 1 + sink_blocks(sink_tokens, block_size)
    return min(windowed, cdiv(total_tokens, block_size))


def reach(window_tokens: int, layers: int) -> int:
    """How many of a stream's last tokens its next one depends on, besides the sinks.

    A layer looks back ``W - 1`` tokens, and what it finds there has looked back in the one below::

        t - layers * (W - 1)  <- ... <-  t - 2 * (W - 1)  <-  t - (W - 1)  <-  t
    """
    return layers * (window_tokens - 1) + 1


def rebuild(tokens: Sequence[int], sinks: int, window_tokens: int, layers: int) -> list[int]:
    """What suffices of a stream's tokens to go on elsewhere exactly as it would have gone on.

    Its sinks, and the tokens within its ``reach``: everything between has left no trace. However
    long the stream was, a server that has none of it computes no more than these.
    """
    last = reach(window_tokens, layers)
    if len(tokens) <= sinks + last:
        return list(tokens)
    return [*tokens[:sinks], *tokens[-last:]]


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


def section_of(
    additional_config: object, key: str, known: Mapping[str, str], example: str
) -> Mapping[str, Any]:
    """One of this project's mappings in ``additional_config``; empty where it is not there.

    Raises:
        PolicyError: it is no mapping, or has a key that is not ``known``.
    """
    config = additional_config if isinstance(additional_config, Mapping) else {}
    given = config.get(key, {})
    if not isinstance(given, Mapping):
        raise PolicyError(key, given, f"a mapping such as {example}")
    for name in given:
        if name not in known:
            raise PolicyError(f"{key}.{name}", given[name], f"one of {', '.join(known)}")
    return given


def require_int(field: str, value: object, least: int) -> int:
    """``value`` if it is an integer of at least ``least``.

    Raises:
        PolicyError: naming the field, the value and what is allowed.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise PolicyError(field, value, f"an integer of at least {least}")
    return value
