"""Supported features of the KV cache and of scheduling."""

from __future__ import annotations

from vllm_sink.startup.features.row import held

ROWS = (
    held(
        "prefix caching",
        "--enable-prefix-caching --prefix-caching-hash-algo",
        "tests/e2e/test_paths.py::test_second_turn_hits_the_prefix_cache",
    ),
    held(
        "prefix caching off",
        "--no-enable-prefix-caching",
        "tests/e2e/test_features_engine.py::test_nothing_cached_and_no_tokenizer",
        fields="",
    ),
    held(
        "chunked prefill",
        "--enable-chunked-prefill --max-num-batched-tokens",
        "tests/e2e/test_rollover.py::test_prompts_longer_than_a_segment",
    ),
    held(
        "smaller prefill chunks, prefill intervals",
        "--long-prefill-token-threshold --long-prefill-token-threshold-adaptive "
        "--max-num-scheduled-tokens --prefill-schedule-interval",
        "tests/e2e/test_features_engine.py::test_scheduling",
    ),
    held(
        "priorities",
        "--scheduling-policy",
        "tests/e2e/test_features_engine.py::test_scheduling",
        why="priority orders the queue; a running stream is never preempted for another request",
    ),
    held(
        "fewer running requests than rows, free blocks in reserve",
        "--max-num-active-seqs --watermark",
        "tests/e2e/test_features_engine.py::test_scheduling",
    ),
    held(
        "one block size for all layers",
        "--disable-hybrid-kv-cache-manager",
        "tests/e2e/test_features_engine.py::test_scheduling",
    ),
    held(
        "worker extensions",
        "--worker-extension-cls",
        "tests/e2e/test_features_engine.py::test_scheduling",
    ),
    held(
        "statistics of blocks",
        "--kv-cache-metrics --kv-cache-metrics-sample",
        "tests/e2e/test_features_engine.py::test_scheduling",
    ),
    held(
        "asynchronous scheduling",
        "--async-scheduling",
        "tests/gpu/test_rollover.py::test_every_token_equals_the_reference",
        why="vLLM's default on a GPU; on vLLM's V1 runner: tests/e2e/test_ahead_v1.py",
    ),
    held(
        "asynchronous scheduling off",
        "--no-async-scheduling",
        "tests/e2e/test_features_engine.py::test_nothing_cached_and_no_tokenizer",
        fields="",
        why="vLLM's default on a CPU",
    ),
    held(
        "queue limits",
        "--max-num-queued-reqs --max-num-queued-tokens",
        "tests/e2e/test_features_server.py::test_a_full_queue_is_a_503",
        why="HTTP 503; a stream that rolls counts as one request",
    ),
    held("block sizes", "--block-size", "tests/e2e/test_paths.py::test_block_sizes"),
    held(
        "a pool of a given size",
        "--num-gpu-blocks-override --kv-cache-memory-bytes",
        "tests/e2e/test_rollover.py::test_a_full_pool_queues_and_never_preempts",
    ),
    held(
        "a maximum length of streams",
        "--max-model-len",
        "tests/e2e/test_rollover.py::test_max_model_len_ends_a_stream",
    ),
)
