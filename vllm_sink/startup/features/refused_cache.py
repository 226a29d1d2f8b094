"""Refused features of the KV cache: drafts in it, its place, its parts, its type."""

from __future__ import annotations

from typing import Any

from vllm_sink.startup.features.checks import Check, above, differs, flag_above_one, there
from vllm_sink.startup.features.row import NOT_HELD, refused


def _other_cache_dtype(vllm_config: Any) -> bool:
    model_dtype = str(vllm_config.model_config.dtype).removeprefix("torch.")
    return str(vllm_config.cache_config.cache_dtype) not in ("auto", model_dtype)


ROWS = (
    refused(
        "speculative decoding",
        "--speculative-config --spec-method --spec-model --spec-tokens",
        "a rollover with drafts in flight is not tested against the reference yet",
        there("speculative_config"),
    ),
    refused(
        "KV connectors and offloading",
        "--kv-transfer-config --kv-offloading-size --kv-offloading-backend",
        "a KV connector expects every block of a prefix, and a stream keeps only its two ends",
        there("kv_transfer_config"),
    ),
    refused(
        "KV events",
        "--kv-events-config",
        "block hashes under the policy name the sinks, which consumers of events do not know",
        differs("kv_events_config", "enable_kv_cache_events", False),
        allowed="without it, or enable_kv_cache_events false",
    ),
    refused(
        "decode context parallelism",
        "--decode-context-parallel-size --dcp-comm-backend --dcp-q-replicate "
        "--dcp-kv-cache-interleave-size --cp-kv-cache-interleave-size",
        "the cache of a stream is not sharded by token",
        above(1, "parallel_config.decode_context_parallel_size"),
        allowed="1",
    ),
    refused(
        "prefill context parallelism",
        "--prefill-context-parallel-size",
        "the cache of a stream is not sharded by token",
        above(1, "parallel_config.prefill_context_parallel_size"),
        set_by=flag_above_one("prefill_context_parallel_size"),
        hand_made="vLLM takes it on its V2 runner alone, which needs a GPU",
        allowed="1",
    ),
    refused(
        "pipeline parallelism",
        "--pipeline-parallel-size",
        NOT_HELD,
        above(1, "parallel_config.pipeline_parallel_size"),
        allowed="1",
    ),
    refused(
        "KV of another type than the model's",
        "--kv-cache-dtype --kv-cache-dtype-skip-layers",
        "the attention provider reads keys in the model's own type, without scales",
        Check(_other_cache_dtype, ("cache_config.cache_dtype",)),
        allowed="auto, or the model's own type",
    ),
    refused(
        "KV sharing in prefill",
        "--kv-sharing-fast-prefill",
        "it skips layers' keys that the window needs",
        differs("cache_config", "kv_sharing_fast_prefill", False),
    ),
)
