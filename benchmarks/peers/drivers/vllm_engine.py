"""vLLM in this process, stepped by hand: stock (full attention, sliding window) or the policy.

``PEER_POLICY`` says which: full, window or sink.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

from benchmarks.peers.drivers.protocol import Peer, Settings, serve

#: Bytes of KV of every engine: 16 streams under any of the policies.
KV_BYTES = 384 << 20


def options(policy: str, settings: Settings) -> dict[str, Any]:
    """How the three engines differ."""
    match policy:
        case "full":
            return {}
        case "window":
            # A Llama whose every layer says that it has a sliding window.
            import json

            layers = json.loads((Path(settings.model) / "config.json").read_text())
            kinds = ["sliding_attention"] * layers["num_hidden_layers"]
            return {"hf_overrides": {"layer_types": kinds, "sliding_window": settings.cache_tokens}}
        case "sink":
            return {
                "additional_config": {
                    "kv_policy": {
                        "name": "sink",
                        "sink_tokens": settings.sink_tokens,
                        "window_tokens": settings.window_tokens,
                        # A text's log-probabilities exist only within a segment, which holds a
                        # block and a token more.
                        **({"segment_tokens": settings.length + 256} if settings.length else {}),
                    }
                }
            }
        case _:
            raise ValueError(f"PEER_POLICY: {policy} is not allowed; allowed: full, window, sink")


class VllmPeer(Peer):
    packages = ("vllm", "torch", "transformers")
    notes = ("continuous batching in one process, compiled (vLLM's default); no HTTP, no text",)

    def load(self, settings: Settings) -> None:
        from vllm import LLM

        self.settings = settings
        self.policy = os.environ["PEER_POLICY"]
        self.llm = LLM(
            settings.model,
            dtype=settings.dtype,
            max_num_seqs=settings.streams,
            max_num_batched_tokens=512,
            kv_cache_memory_bytes=KV_BYTES,
            disable_log_stats=True,
            # One text is read, nothing is timed: compiling would take longer.
            enforce_eager=bool(settings.length),
            **options(self.policy, settings),
        )
        self.engine = self.llm.llm_engine
        self.live: list[str] = []
        self.named = 0

    def begin(self, prompts: list[list[int]]) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self.engine.abort_request(self.live)
        while self.engine.has_unfinished_requests():
            self.engine.step()
        self.live = []
        for prompt in prompts:
            params = SamplingParams(
                max_tokens=4096,
                temperature=0.0,
                ignore_eos=True,
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
            )
            self.named += 1
            self.live.append(str(self.named))
            self.engine.add_request(self.live[-1], {"prompt_token_ids": prompt}, params)
        waiting = set(self.live)
        while waiting:
            waiting -= {output.request_id for output in self.engine.step()}

    def step(self) -> int:
        return sum(len(output.outputs[0].token_ids) for output in self.engine.step())

    def score(self, tokens: list[int]) -> list[float]:
        """By prefill, in chunks: it scores the policy, however it is computed."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        outputs = self.llm.generate({"prompt_token_ids": tokens}, params, use_tqdm=False)
        found = outputs[0].prompt_logprobs
        return [found[i][tokens[i]].logprob for i in range(1, len(tokens))]


if __name__ == "__main__":
    serve(VllmPeer())
