"""An engine of ``benchmarks.serving``, stepped by hand."""

from __future__ import annotations

import time
from typing import Any

#: Untimed steps at the start of a round. With asynchronous scheduling the first hands out tokens
#: that were ready before the round and finds the GPU idle; later ones follow each other.
LEAD = 3


class Side:
    """One engine, stepped by hand."""

    def __init__(self, llm: Any, seed: int) -> None:
        import numpy

        self.engine = llm.llm_engine
        self.core = self.engine.engine_core.engine_core
        self.config = self.engine.vllm_config
        self.random = numpy.random.default_rng(seed)
        self.live: list[str] = []
        self.added = 0
        self.most_blocks = 0
        self.schedule = self.core.scheduler.schedule
        self.core.scheduler.schedule = self._schedule

    def _schedule(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM's own, and how many KV blocks are held once a step is planned."""
        planned = self.schedule(*args, **kwargs)
        pool = self.core.scheduler.kv_cache_manager.block_pool
        held = pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()
        self.most_blocks = max(self.most_blocks, held)
        return planned

    def prompt(self, tokens: int) -> list[int]:
        """Random tokens: no two prompts share a prefix."""
        vocabulary = self.config.model_config.get_vocab_size()
        return self.random.integers(0, vocabulary, tokens).tolist()

    def first(self, prompt: list[int], most: int) -> Any:
        """Add a stream and step until its first token; the others continue meanwhile."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            max_tokens=most,
            temperature=0.0,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        self.added += 1
        name = str(self.added)
        self.engine.add_request(name, {"prompt_token_ids": prompt}, params)
        self.live.append(name)
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                if output.request_id == name:
                    return output
        raise RuntimeError(f"request {name} ended without a token")

    def shrink(self, count: int) -> None:
        """End all streams but the first ones."""
        self.engine.abort_request(self.live[count:])
        del self.live[count:]
        if not count:
            self._drain()

    def _drain(self) -> None:
        """Tokens in flight may belong to streams that are gone."""
        while self.core.batch_queue or self.core.scheduler.has_requests():
            self.engine.step()

    def decode(self, steps: int) -> float:
        """Seconds of a step in which every live stream gets one token."""
        synchronize()
        for _ in range(LEAD):
            self.engine.step()
        begin = time.perf_counter()
        produced = [self.engine.step() for _ in range(steps)]
        seconds = time.perf_counter() - begin
        synchronize()
        for outputs in produced:
            told = [len(o.outputs[0].token_ids) for o in outputs if not o.finished]
            if told != [1] * len(self.live):
                raise RuntimeError(f"{len(self.live)} streams, but a step gave {told} tokens")
        return seconds / steps

    def first_token(self, tokens: int) -> float:
        """Seconds to the only token of a new prompt, on an idle engine."""
        prompt = self.prompt(tokens)
        synchronize()
        begin = time.perf_counter()
        output = self.first(prompt, 1)
        seconds = time.perf_counter() - begin
        if output.num_cached_tokens:
            raise RuntimeError(f"{output.num_cached_tokens} tokens of the prompt were cached")
        self.shrink(0)
        return seconds

    def prefill(self, streams: int, tokens: int) -> float:
        """Seconds until each of ``streams`` new prompts has its only token."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, detokenize=False)
        prompts = [self.prompt(tokens) for _ in range(streams)]
        synchronize()
        begin = time.perf_counter()
        for prompt in prompts:
            self.added += 1
            self.engine.add_request(str(self.added), {"prompt_token_ids": prompt}, params)
        finished = 0
        while self.engine.has_unfinished_requests():
            finished += sum(output.finished for output in self.engine.step())
        seconds = time.perf_counter() - begin
        if finished != streams:
            raise RuntimeError(f"{finished} of {streams} prompts had their token")
        self._drain()
        return seconds

    def attention(self) -> list[Any]:
        """The model's attention layers."""
        layers = self.config.compilation_config.static_forward_context.values()
        return [layer for layer in layers if hasattr(layer, "sliding_window")]

    def block_bytes(self) -> int:
        """Bytes of one KV block over all layers."""
        groups = self.core.scheduler.kv_cache_config.kv_cache_groups
        return sum(g.kv_cache_spec.page_size_bytes * len(g.layer_names) for g in groups)

    def settings(self) -> dict[str, Any]:
        """The configuration that this engine runs with."""
        config = self.config
        layer = self.attention()[0]
        return {
            "kv_policy": config.additional_config.get("kv_policy"),
            "attention_backend": layer.get_attn_backend().get_name(),
            "sliding_window": layer.sliding_window,
            "cudagraph_mode": config.compilation_config.cudagraph_mode.name,
            "cudagraph_capture_sizes": config.compilation_config.cudagraph_capture_sizes,
            "num_gpu_blocks": config.cache_config.num_gpu_blocks,
            "block_bytes": self.block_bytes(),
            **self.shared_settings(),
        }

    def shared_settings(self) -> dict[str, Any]:
        """What must be equal on both sides for their times to be comparable."""
        config = self.config
        return {
            "v2_model_runner": config.use_v2_model_runner,
            "async_scheduling": bool(config.scheduler_config.async_scheduling),
            "batch_queue": self.core.batch_queue_size,
            "compilation": config.compilation_config.mode.name,
            "block_size": self.core.scheduler.block_size,
            "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "max_model_len": config.model_config.max_model_len,
            "prefix_caching": config.cache_config.enable_prefix_caching,
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
        }


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
