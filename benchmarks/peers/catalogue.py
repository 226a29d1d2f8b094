"""The peers, by name: driver, environment, settings."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Entry:
    """One peer.

    driver: module of ``benchmarks.peers.drivers``. environment: of ``build/peers``; None: ours.
    variables: given to the driver. gguf: which file, for llama.cpp.
    policy: what its cache keeps, in words. speed, agreement: what is measured of it.
    """

    driver: str
    environment: str | None
    policy: str
    variables: dict[str, str] = field(default_factory=dict)
    gguf: str = "q4_1"
    speed: bool = True
    agreement: bool = True


def _vllm(policy: str, words: str) -> Entry:
    return Entry("vllm_engine", None, words, {"PEER_POLICY": policy})


def _llamacpp_server(gguf: str) -> Entry:
    words = "sinks, and half of the rest dropped whenever it is full"
    variables = {"PEER_SERVER": "llama.cpp"}
    return Entry("http_server", None, words, variables, gguf, agreement=False)


def _llamacpp_calls(eviction: str, gguf: str, words: str) -> Entry:
    variables = {"PEER_EVICTION": eviction}
    return Entry("llamacpp_calls", "llamacpp", words, variables, gguf)


SINKS = "sinks and window"

PEERS = {
    "vllm-sink": _vllm("sink", SINKS),
    "vllm-sink, HTTP": Entry(
        "http_server", None, SINKS, {"PEER_SERVER": "vllm-sink"}, agreement=False
    ),
    "vLLM, full": _vllm("full", "everything, to the native context"),
    "vLLM, window": _vllm("window", "window alone, true positions"),
    "llama.cpp server, bf16": _llamacpp_server("bf16"),
    "llama.cpp server, Q4_1": _llamacpp_server("q4_1"),
    "llama.cpp calls, bf16": _llamacpp_calls("token", "bf16", SINKS),
    "llama.cpp calls, Q4_1": _llamacpp_calls("token", "q4_1", SINKS),
    "llama.cpp shift, bf16": _llamacpp_calls(
        "half", "bf16", "sinks, and half of the rest dropped whenever it is full"
    ),
    "transformers SinkCache": Entry("sink_cache", "transformers", "sinks and window, misplaced"),
    "attention-sinks": Entry("attention_sinks", "attention-sinks", SINKS),
    "kvpress": Entry("kvpress", "kvpress", "sinks and window, true positions, cache unordered"),
    "recomputation": Entry("recomputation", "transformers", "window alone, encoded anew"),
}
