"""Supported features of answers and of the server."""

from __future__ import annotations

from vllm_sink.startup.features.row import held

ROWS = (
    held(
        "structured outputs",
        "--structured-outputs-config",
        "tests/e2e/test_endless_server.py::test_structured_output_goes_on",
        why="xgrammar; guidance and outlines: tests/e2e/test_features_engine.py",
    ),
    held(
        "prompt embeddings",
        "--enable-prompt-embeds",
        "tests/e2e/test_features_requests.py::test_embeddings_say_what_their_tokens_say",
        why="within a segment",
    ),
    held(
        "modes of log-probabilities",
        "--logprobs-mode --max-logprobs",
        "tests/e2e/test_features_requests.py::test_same_as_in_one_segment",
    ),
    held(
        "intervals of streamed output",
        "--stream-interval",
        "tests/e2e/test_rollover.py::test_a_streamed_answer_is_not_kept",
    ),
    held(
        "no tokenizer",
        "--skip-tokenizer-init",
        "tests/e2e/test_features_engine.py::test_nothing_cached_and_no_tokenizer",
    ),
    held(
        "no statistics",
        "--disable-log-stats",
        "tests/e2e/test_metrics_engines.py::test_with_statistics_off_nothing_is_counted",
    ),
    held(
        "several API processes",
        "--api-server-count",
        "tests/e2e/test_metrics_server.py::test_several_api_processes",
        why="not with limits of tenants, which each process would count by itself",
    ),
    held(
        "tool calls",
        "--enable-auto-tool-choice --tool-call-parser --tool-parser-plugin --tool-strict-level "
        "--exclude-tools-when-tool-choice-none",
        "tests/e2e/test_features_server.py::test_a_tool_call_longer_than_a_segment",
    ),
    held(
        "reasoning parsers",
        "--reasoning-parser --reasoning-parser-plugin --reasoning-config",
        "tests/e2e/test_features_server.py::test_thoughts_and_an_answer_over_segments",
    ),
    held(
        "token endpoints",
        "--enable-scale-out",
        "tests/e2e/test_door.py::test_a_bad_option_is_refused_on_every_route",
    ),
    held(
        "a shutdown timeout",
        "--shutdown-timeout",
        "tests/unit/test_drain.py::test_the_time_for_streams_leaves_some_for_the_end",
    ),
    held(
        "logging of answers",
        "--enable-log-outputs --enable-log-deltas",
        "tests/unit/test_chat_text_leak.py::test_the_log_of_outputs_has_the_text",
        why="with them vLLM keeps a copy of a streamed chat's text",
    ),
    held("an API key", "--api-key", "tests/deploy/test_container.py::test_key"),
)
