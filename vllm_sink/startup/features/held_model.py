"""Supported features of the model, its weights, its devices and its compilation."""

from __future__ import annotations

from vllm_sink.startup.features.row import held

ROWS = (
    held(
        "number types",
        "--dtype",
        "tests/e2e/test_purity.py::test_perplexity_far_away",
        why="float32 token by token; bfloat16 and float16 by tests/gpu/test_engine.py too",
    ),
    held(
        "quantised weights",
        "--quantization --quantization-config --allow-deprecated-quantization --linear-backend",
        "tests/e2e/test_features_weights.py::test_quantised_weights",
        why="tested with 8 bits (compressed-tensors); other methods replace the same linear "
        "layers, and no attention",
    ),
    held(
        "LoRA",
        "--enable-lora --max-loras --max-lora-rank --max-cpu-loras --lora-dtype "
        "--lora-target-modules --lora-modules --specialize-active-lora",
        "tests/e2e/test_features_weights.py::test_lora",
        why="vLLM 0.32's CPU build applies an adapter to requests without one in the same batch, "
        "with or without a policy",
    ),
    held(
        "tensor parallelism",
        "--tensor-parallel-size --disable-custom-all-reduce",
        "tests/gpu/test_tensor_parallel.py::test_same_tokens_and_the_references_log_probabilities",
    ),
    held(
        "data parallelism on one machine",
        "--data-parallel-size --data-parallel-size-local --dp-sync-interval "
        "--disable-nccl-for-dp-synchronization",
        "tests/e2e/test_features_server.py::test_two_engines",
    ),
    held(
        "Ray's executor",
        "--distributed-executor-backend",
        "tests/ray/test_executor.py::test_same_tokens_with_and_without",
    ),
    held(
        "torch.compile and CUDA graphs",
        "--compilation-config --enforce-eager --optimization-level --performance-mode "
        "--cudagraph-capture-sizes --max-cudagraph-capture-size",
        "tests/gpu/test_engine.py::test_compiled_with_cuda_graphs",
        why="on a CPU: tests/e2e/test_features_engine.py::test_compiled",
    ),
)
