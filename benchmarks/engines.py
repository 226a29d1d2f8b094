"""Engines in this process, and tokenized texts, for the measurements of quality."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

# In this process, so that the scheduler's progress can be read.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")

#: vLLM's own default, named here so that result files can record it.
SEED = 0


def start(
    model: str,
    kv_policy: dict[str, Any] | None,
    length: int,
    *,
    dtype: str = "float32",
    chunk: int = 1024,
    streams: int = 1,
    kv_gib: float | None = None,
    prefix_caching: bool = False,
    **settings: Any,
) -> Any:
    """An engine with room for streams of ``length`` tokens.

    Args:
        model: a folder or a name.
        kv_policy: as in ``additional_config``, entries that are None left out; None or the name
            ``full`` for vLLM unchanged, its rotary table widened to ``length``.
        length: tokens of bookkeeping that a stream may have.
        dtype: of weights and arithmetic.
        chunk: maximum number of tokens of a step (``max_num_batched_tokens``).
        streams: maximum number of concurrent streams.
        kv_gib: size of the KV pool; None for vLLM's own choice.
        prefix_caching: whether a prompt reuses an earlier one's blocks.
        settings: further arguments of ``LLM``.
    """
    from vllm import LLM

    if kv_gib is not None:
        # A named pool is not measured against what else lives on the GPU.
        settings["kv_cache_memory_bytes"] = int(kv_gib * 2**30)
        settings["gpu_memory_utilization"] = 0.05
    if kv_policy is None or kv_policy["name"] == "full":
        widened = max(length, native_context(model))
        settings["hf_overrides"] = {"max_position_embeddings": widened}
    else:
        # Log-probabilities of a prompt exist only within one segment.
        policy = {"segment_tokens": length, **kv_policy}
        settings["additional_config"] = {
            "kv_policy": {key: value for key, value in policy.items() if value is not None}
        }
    return LLM(
        model,
        seed=SEED,
        dtype=dtype,
        enforce_eager=True,
        max_model_len=length,
        max_num_batched_tokens=chunk,
        max_num_seqs=streams,
        enable_prefix_caching=prefix_caching,
        disable_log_stats=True,
        **settings,
    )


def stop(llm: Any) -> None:
    """Take an engine down, so that another may follow in this process."""
    import gc

    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()


def native_context(model: str) -> int:
    """The model's own context; the engine of ``--policy full`` was given a wider one."""
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(model).get_text_config().max_position_embeddings)


def tokens_up_to(tokenizer: Any, text: Path, most: int) -> list[int]:
    """The first tokens of a UTF-8 text, at most ``most``.

    Raises:
        SystemExit: there is no such text.
    """
    try:
        # They need only the first characters; a long book is cut before it is tokenized.
        characters = text.read_text(encoding="utf-8")[: 16 * most]
    except OSError as error:
        raise SystemExit(
            f"--text: {text} is not allowed; allowed: a file that can be read ({error.strerror})"
        ) from None
    except UnicodeDecodeError as error:
        raise SystemExit(
            f"--text: {text} is not allowed; allowed: UTF-8 text; byte {error.start:,} is not"
        ) from None
    tokens: list[int] = tokenizer.encode(characters)[:most]
    return tokens


def read_tokens(tokenizer: Any, text: Path, count: int, repeat: bool = False) -> list[int]:
    """The first ``count`` tokens of a UTF-8 text.

    Args:
        tokenizer: of the model.
        text: a file.
        count: tokens.
        repeat: begin the text again where it ends.

    Raises:
        SystemExit: there is no such text, or it is shorter.
    """
    tokens = tokens_up_to(tokenizer, text, count)
    if repeat and tokens:
        tokens = (tokens * (count // len(tokens) + 1))[:count]
    if len(tokens) < count:
        raise SystemExit(
            f"--tokens: {count} is not allowed; allowed: at most {len(tokens)}, the length of "
            f"{text}"
        )
    return tokens


def spread(tokens: int, count: int, first: int = 0) -> list[int]:
    """``count`` indices, evenly spread over ``[first, tokens)``; fewer where there are fewer."""
    room = tokens - first
    count = min(count, room)
    return [first + (2 * i + 1) * room // (2 * count) for i in range(count)]
