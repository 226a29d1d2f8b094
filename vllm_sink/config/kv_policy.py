"""The KV policy of an engine: what a server was started with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from vllm_sink.config.fields import STRICT, Allowed, Flag, flags_of, named_by_flag, validated
from vllm_sink.config.sections import parsed_once
from vllm_sink.errors import PolicyError
from vllm_sink.policy import StreamPolicy
from vllm_sink.segments import CHUNK_ROOM

PolicyName = Literal["full", "window", "sink"]
POLICY_NAMES: tuple[PolicyName, ...] = get_args(PolicyName)

#: The paper's choice: four sink tokens are enough for every model it looked at (Table 2).
DEFAULT_SINK_TOKENS = 4

#: In place of a number: as many as the leading system message of a chat has.
SYSTEM = "system"

#: Ways to compute attention that can be asked for; vllm_sink.attention.providers says what each is.
SinkAttention = Literal["auto", "flash", "triton", "xformers", "torch"]
SINK_ATTENTION: tuple[SinkAttention, ...] = get_args(SinkAttention)

#: The key of ``additional_config`` that carries the policy to every process.
CONFIG_KEY = "kv_policy"


@dataclass(frozen=True, config=STRICT)
class KVPolicy:
    """What a server was started with.

    Attributes:
        sink_tokens: ``S`` for requests that do not name their own; 0 for ``window``.
        window_tokens: ``W`` for requests that do not name their own, and the most that one may
            name; None until chosen from the model's context.
        segment_tokens: None until chosen.
        native_context: positions that the model has learned; None until known.
        replaces_sliding_window: the model's own, uniform sliding window gives way to the policy.
        provider: the one that computes attention; chosen when the engine's config is made.
        stream_tokens: the most tokens that a stream may have; None where only the client ends it.
        pins_system: a chat that names no ``S`` pins its leading system message, if it has one.
        true_positions: **not the policy**: sinks stay at their true distance from the query, as if
            section 3.2 of the paper did not say otherwise. For ``benchmarks.paper``, which measures
            what that costs; no flag sets it.
    """

    name: Annotated[PolicyName, Flag("--kv-policy", default="full")] = Field(
        description="full: vLLM unchanged. sink: every request keeps the KV of its first "
        "--sink-tokens tokens and of its last --window-tokens tokens, and streams past the "
        "model's context. window: the same without sinks.",
    )
    sink_tokens: Annotated[int, Flag("--sink-tokens", "S"), Allowed(word=SYSTEM)] = Field(
        default=DEFAULT_SINK_TOKENS,
        ge=0,
        description="Tokens at the start of a request that are never evicted. system: of a chat, "
        f"its leading system message, else {DEFAULT_SINK_TOKENS}. A request can name its own: "
        '"vllm_xargs": {"sink_tokens": 300}.',
    )
    window_tokens: Annotated[
        int | None,
        Flag("--window-tokens", "W", "half of the model's context, stated in the log"),
    ] = Field(default=None, ge=1, description="Most recent tokens that are kept.")
    native_context: int | None = None
    replaces_sliding_window: bool = False
    sink_attention: Annotated[
        SinkAttention,
        Flag(
            "--sink-attention",
            default="auto, by what the GPU and the model allow; the log says which and why",
        ),
    ] = Field(
        default="auto",
        description="What computes attention. flash: FlashAttention, sinks merged. triton: one "
        "fused kernel. xformers: memory-efficient attention, merged. torch: plain tensors.",
    )
    provider: str = "torch"
    segment_tokens: Annotated[
        int | None,
        Flag("--segment-tokens", "N", f"the model's context and {CHUNK_ROOM} more"),
    ] = Field(
        default=None,
        ge=1,
        description="Bookkeeping (token lists, block tables) that is kept of a stream; when it is "
        "full, evicted tokens leave it. Bounds no stream and changes no output: that is "
        "--max-model-len, by default without a limit.",
    )
    stream_tokens: int | None = None
    pins_system: bool = False
    true_positions: bool = False

    @model_validator(mode="after")
    def _window_has_no_sinks(self) -> KVPolicy:
        if self.name == "window" and (self.pins_system or self.sink_tokens):
            value = SYSTEM if self.pins_system else self.sink_tokens
            raise PolicyError("--sink-tokens", value, "0 with --kv-policy window, which has none")
        return self

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
        return _read(config)


#: Fields and the flags that set them.
FLAGS = flags_of(KVPolicy)

_called = named_by_flag(KVPolicy, CONFIG_KEY)


@parsed_once
def _read(given: Mapping[str, Any]) -> KVPolicy:
    values = {"name": "sink", **given}
    sinks = values.get("sink_tokens")
    if sinks == SYSTEM:
        values["pins_system"] = True
    if sinks is None or sinks == SYSTEM:
        values["sink_tokens"] = DEFAULT_SINK_TOKENS if values["name"] == "sink" else 0
    return validated(KVPolicy, values, _called)


def policy_of(vllm_config: Any) -> KVPolicy | None:
    """The policy of an engine, by its ``VllmConfig``; None where vLLM is unchanged."""
    config = vllm_config.additional_config
    if not isinstance(config, Mapping) or CONFIG_KEY not in config:
        return None
    found = KVPolicy.from_config(config[CONFIG_KEY])
    return found if found.active else None
