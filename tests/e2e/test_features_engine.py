"""Settings of vLLM under which streams roll, many at a time, compared with the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.utils

from tests.e2e.engines import (
    FIRST_TOKEN,
    greedy,
    prompt,
    random_tokens,
    scheduler_of,
    tiny,
)
from tests.e2e.streams import SINKS, difference, rolling, run, said

#: Tokens of an answer below, and S of each stream in the order in which they come.
COUNT, STREAMS = 150, (SINKS, 0, 20, 1)


class Extension:
    """What an operator adds to a worker: ``--worker-extension-cls``."""

    def block_tokens(self: Any) -> int:
        return int(self.vllm_config.cache_config.block_size)


SCHEDULING = {
    "scheduling_policy": "priority",
    "max_num_active_seqs": 2,
    "max_num_scheduled_tokens": 48,
    "long_prefill_token_threshold": 16,
    "long_prefill_token_threshold_adaptive": True,
    "prefill_schedule_interval": 3,
    "watermark": 0.05,
    "prefix_caching_hash_algo": "sha256_cbor",
    "disable_hybrid_kv_cache_manager": True,
    "kv_cache_metrics": True,
    "kv_cache_metrics_sample": 1.0,
    "worker_extension_cls": f"{__name__}.Extension",
}


def test_scheduling(tiny_folder: Path) -> None:
    """Two streams run at a time, the more urgent first; a second turn finds the first cached."""
    folder = tiny("gemma3", tiny_folder)  # some layers have a window of their own
    with rolling(folder, **SCHEDULING) as llm:
        core, scheduler = llm.llm_engine, scheduler_of(llm)
        for i, sinks in enumerate(STREAMS):
            tokens = random_tokens(30 + 60 * i, seed=i)
            core.add_request(f"{sinks}", prompt(tokens), greedy(COUNT, sinks), priority=-i)
        last: dict[str, Any] = {}
        ended: list[str] = []
        while core.has_unfinished_requests():
            for output in core.step():
                last[output.request_id] = output
                ended += [output.request_id] if output.finished else []
            assert len(scheduler.running) <= 2
        turn = [*last["20"].prompt_token_ids, *said(last["20"]), *random_tokens(20)]
        again = run(llm, {"again": (turn, greedy(20, 20))})["again"]
        assert scheduler.rollovers >= 8
        assert llm.collective_rpc("block_tokens") == [16]
    assert set(ended[:2]) == {"20", "1"}  # the last to come are the most urgent
    assert again.num_cached_tokens
    for name, output in {**last, "20 again": again}.items():
        assert difference(output, folder, int(name.split()[0])) < 1e-4


def test_nothing_cached_and_no_tokenizer(tiny_folder: Path) -> None:
    folder = tiny("llama-gqa", tiny_folder)
    settings = {"enable_prefix_caching": False, "skip_tokenizer_init": True}
    with rolling(folder, async_scheduling=False, **settings) as llm:
        requests = {
            str(s): (random_tokens(30 + 60 * i, seed=i), greedy(COUNT, s))
            for i, s in enumerate(STREAMS)
        }
        outputs = run(llm, requests)
        assert scheduler_of(llm).rollovers >= 8
    for name, output in outputs.items():
        assert difference(output, folder, int(name)) < 1e-4
        assert output.num_cached_tokens == 0


@pytest.mark.parametrize("backend", ["guidance", "outlines"])
def test_structured_outputs(backend: str, tiny_folder: Path) -> None:
    """A grammar's state is the scheduler's, whoever keeps it; it says itself what is right."""
    from vllm.sampling_params import StructuredOutputsParams

    params = greedy(600)
    params.structured_outputs = StructuredOutputsParams(regex="(ab[0-9]){80}c")
    params.ignore_eos = False
    settings = {"structured_outputs_config": {"backend": backend}}
    letters = [FIRST_TOKEN + byte for byte in b"Count the waves."]
    with rolling(tiny("llama-gqa", tiny_folder), **settings) as llm:
        output = run(llm, {"a": (letters, params)})["a"]
        assert scheduler_of(llm).rollovers >= 2
    text = output.outputs[0].text
    assert len(text) == 241
    assert {text[i : i + 2] for i in range(0, 240, 3)} == {"ab"}
    assert text[2:240:3].isdigit()
    assert output.outputs[0].finish_reason == "stop"


@pytest.mark.slow
def test_compiled(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch.compile on this machine, whatever it has."""
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    monkeypatch.setattr(torch._dynamo.config, "disable", False)
    folder, before = tiny("llama-gqa", tiny_folder), torch._dynamo.utils.counters["stats"].copy()
    with rolling(folder, enforce_eager=False) as llm:
        output = run(llm, {"a": (random_tokens(90), greedy(COUNT, SINKS))})["a"]
        assert scheduler_of(llm).rollovers >= 2
    assert torch._dynamo.utils.counters["stats"] != before  # graphs were made
    assert difference(output, folder, SINKS) < 1e-4
