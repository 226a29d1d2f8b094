"""Supported features of a request, and those that are answered with HTTP 400."""

from __future__ import annotations

from vllm_sink.startup.features.row import held

_SAMPLING = "tests/e2e/test_rollover.py::test_sampling_does_not_know_segments"
_SAME = "tests/e2e/test_features_requests.py::test_same_as_in_one_segment"
_ROLLS = "tests/e2e/test_features_requests.py::test_refused_for_what_may_roll"
_WITHIN = "within a segment; HTTP 400 for a stream that may roll"

REQUEST = (
    held("penalties", "", _SAMPLING, "presence_penalty frequency_penalty repetition_penalty"),
    held("temperature, top k, seed", "", _SAMPLING, "temperature top_k seed"),
    held("top p, min p", "", _SAME, "top_p min_p"),
    held("lengths", "", _SAMPLING, "min_tokens max_tokens ignore_eos stop_token_ids"),
    held("stop strings", "", _SAMPLING, "stop"),
    held("stop strings in the answer", "", _SAME, "include_stop_str_in_output"),
    held("biases", "", _SAMPLING, "logit_bias"),
    held("allowed tokens", "", _SAME, "allowed_token_ids"),
    held("bad words", "", _SAMPLING, "bad_words"),
    held(
        "several answers", "", "tests/e2e/test_rollover.py::test_several_answers_to_one_prompt", "n"
    ),
    held(
        "beams",
        "",
        "tests/e2e/test_door.py::test_beams_have_the_sinks_that_were_asked_for",
        "beam_width length_penalty",
        "they end at the model's context",
    ),
    held(
        "log-probabilities",
        "",
        "tests/e2e/test_rollover.py::test_every_token_equals_the_reference",
        "logprobs",
    ),
    held(
        "log-probabilities of given tokens, flat ones", "", _SAME, "logprob_token_ids flat_logprobs"
    ),
    held(
        "log-probabilities of the prompt",
        "",
        "tests/e2e/test_rollover.py::test_what_does_not_fit_a_segment",
        "prompt_logprobs",
        "of a prompt that fits in a segment; else HTTP 400",
    ),
    held(
        "log-probabilities of given tokens in the prompt",
        "",
        _ROLLS,
        "prompt_logprob_token_ids prompt_logprob_start",
        _WITHIN,
    ),
    held(
        "structured outputs",
        "",
        "tests/e2e/test_features_engine.py::test_structured_outputs",
        "structured_outputs",
    ),
    held("thinking budgets", "", _ROLLS, "thinking_token_budget", _WITHIN),
    held(
        "repetition detection",
        "",
        _SAME,
        "repetition_detection",
        "patterns that fit in the window, or within a segment; else HTTP 400",
    ),
    held(
        "streaming",
        "",
        "tests/e2e/test_rollover.py::test_a_streamed_answer_is_not_kept",
        "output_kind stream_interval",
    ),
    held("text", "", _SAME, "detokenize skip_special_tokens spaces_between_special_tokens"),
    held("reads of the prefix cache skipped", "", _SAME, "skip_reading_prefix_cache"),
    held(
        "plugin arguments",
        "",
        "tests/e2e/test_server.py::test_a_request_pins_its_own",
        "extra_args",
        "sink_tokens, window_tokens, endless, and no other",
    ),
    held(
        "a trace to follow",
        "",
        _ROLLS,
        "trace_decode_token_ids",
        "HTTP 400: --enable-trace-replay is refused",
    ),
    held(
        "prompt embeddings",
        "",
        "tests/e2e/test_features_requests.py::test_embeddings_say_what_their_tokens_say",
        "prompt_embeds prompt_is_token_ids",
        _WITHIN,
    ),
    held(
        "prompts as tokens and as text",
        "",
        "tests/e2e/test_rollover.py::test_prompts_longer_than_a_segment",
        "prompt prompt_token_ids",
    ),
    held(
        "a salt for the prefix cache",
        "",
        "tests/unit/test_hashing.py::test_a_salt_still_parts",
        "cache_salt",
    ),
    held(
        "streaming input",
        "",
        "tests/e2e/test_async_engine.py::test_streaming_input_is_refused",
        "",
        "HTTP 400: vLLM turns the output so far into prompt, at any point of a rollover",
    ),
)
