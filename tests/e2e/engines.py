"""Real engines on tiny models, in this process, and the reference beside them."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXModel

from tests.models.factory import make_tiny
from tests.models.recipes import VOCAB
from tests.reference import SinkReference

#: Below the special tokens' ids nothing is random.
FIRST_TOKEN = 7


def random_tokens(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(FIRST_TOKEN, VOCAB, (count,), generator=generator).tolist()


@contextmanager
def engine(
    folder: Path, window: int | None, sinks: int = 4, attention: str = "auto", **settings: Any
) -> Iterator[Any]:
    """An LLM under the policy (window None: vLLM unchanged), taken down afterwards."""
    from vllm import LLM
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    if window is not None:
        length = settings.setdefault("max_model_len", 4096)
        # Streams end where bookkeeping does, unless a test is about what comes after.
        segment = settings.pop("segment_tokens", length)
        policy = {
            "name": "sink",
            "sink_tokens": sinks,
            "window_tokens": window,
            "sink_attention": attention,
            "segment_tokens": segment,
        }
        settings["additional_config"] = {"kv_policy": policy}
        settings.setdefault("block_size", 16)
    # vLLM's Transformers backend decorates Hugging Face's own class permanently; the tests of the
    # reference, in the same process, need it undecorated.
    pristine = (GPTNeoXModel.__bases__, dict(vars(GPTNeoXModel)))
    llm = LLM(
        str(folder),
        **{
            "dtype": "float32",
            "enforce_eager": True,
            "max_num_batched_tokens": 64,
            "max_num_seqs": 16,
            **settings,
        },
    )
    try:
        yield llm
    finally:
        _restore(GPTNeoXModel, pristine)
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def _restore(cls: type, pristine: tuple[tuple[type, ...], dict[str, Any]]) -> None:
    bases, attributes = pristine
    if cls.__bases__ != bases:
        cls.__bases__ = bases
    for name in set(vars(cls)) - set(attributes):
        delattr(cls, name)
    for name, value in attributes.items():
        if vars(cls)[name] is not value:
            setattr(cls, name, value)


def scheduler_of(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.scheduler


def greedy(count: int, sinks: int | str | None = None, window: Any = None, **settings: Any) -> Any:
    """Sampling parameters: greedy, for exactly ``count`` tokens, with their log-probabilities."""
    from vllm import SamplingParams

    asked = {"sink_tokens": sinks, "window_tokens": window}
    extra = {name: value for name, value in asked.items() if value is not None} or None
    return SamplingParams(
        max_tokens=count,
        temperature=0.0,
        ignore_eos=True,
        logprobs=0,
        extra_args=extra,
        **settings,
    )


def prompt(tokens: Sequence[int]) -> dict[str, list[int]]:
    return {"prompt_token_ids": list(tokens)}


def logprobs(output: Any) -> torch.Tensor:
    """Log-probability of every token but the first: the prompt's, then the output's."""
    ids = output.prompt_token_ids
    told = [output.prompt_logprobs[i][ids[i]].logprob for i in range(1, len(ids))]
    completion = output.outputs[0]
    told += [
        step[t].logprob for step, t in zip(completion.logprobs, completion.token_ids, strict=False)
    ]
    return torch.tensor(told, dtype=torch.float64)


def reference_logprobs(
    folder: Path, sinks: int, window: int, tokens: Sequence[int]
) -> torch.Tensor:
    """The same by the reference, one token at a time."""
    # vLLM's BLOOM has the exact GELU, Hugging Face's the tanh form of it.
    bloom = "bloom" in folder.name
    scores = SinkReference(folder, sinks, window, exact_gelu=bloom).score(list(tokens))
    following = torch.tensor(tokens[1:])
    return scores[:-1].double().gather(1, following[:, None])[:, 0]


def tiny(arch: str, root: Path) -> Path:
    return make_tiny(arch, root / arch)


def assert_equal_the_reference(
    outputs: Sequence[Any], folder: Path, sinks: Sequence[int], window: int, bound: float
) -> None:
    """Each token of the outputs, prompts included, has the reference's log-probability."""
    for s, output in zip(sinks, outputs, strict=True):
        every = [*output.prompt_token_ids, *output.outputs[0].token_ids]
        difference = (logprobs(output) - reference_logprobs(folder, s, window, every)).abs()
        assert difference.max() < bound, f"S {s}, W {window}: {difference.max():.2e}"
