"""vLLM's own detokenizer, given a prompt's end, says what it says given all of the prompt."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers.decoders
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

from tests.models.tokenizer import build_tokenizer
from vllm_sink.serving.priming import PRIMED, with_prompts_end

PLAIN = getattr(
    FastIncrementalDetokenizer.__init__, "__wrapped__", FastIncrementalDetokenizer.__init__
)


class _Primed(FastIncrementalDetokenizer):
    def __init__(self, tokenizer: Any, request: Any) -> None:
        with_prompts_end(PLAIN)(self, tokenizer, request)


class _Plain(FastIncrementalDetokenizer):
    def __init__(self, tokenizer: Any, request: Any) -> None:
        PLAIN(self, tokenizer, request)


def sentence_pieces() -> PreTrainedTokenizerFast:
    """As Llama 2's: words begin with a mark, the text's first space goes, bytes where words end."""
    words = ["<unk>", "</s>", *(f"▁w{i}" for i in range(50)), *(f"x{i}" for i in range(50))]
    words += [f"<0x{byte:02X}>" for byte in range(256)]
    backend = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def said(kind: type, tokenizer: Any, prompt: list[int], answer: list[int]) -> list[str]:
    """The text of each token of an answer."""
    request = SimpleNamespace(
        request_id="1", prompt_token_ids=prompt, sampling_params=SamplingParams()
    )
    detokenizer = kind(tokenizer, request)
    return [detokenizer.decode_next(token) for token in answer]


@pytest.mark.parametrize(
    "make", [lambda: build_tokenizer(512), sentence_pieces], ids=["bytes", "pieces"]
)
@pytest.mark.parametrize("length", [1, PRIMED, PRIMED + 1, 5 * PRIMED])
@pytest.mark.parametrize("seed", range(6))
def test_a_prompts_end_is_enough(make: Any, length: int, seed: int) -> None:
    # Not the single bytes: a long run of them that is no UTF-8 is told from its own first byte.
    tokenizer, chance = make(), random.Random(seed)
    prompt = chance.choices(range(2, 102), k=length)
    answer = chance.choices(range(2, 102), k=300)
    assert said(_Primed, tokenizer, prompt, answer) == said(_Plain, tokenizer, prompt, answer)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_character_that_the_prompt_left_open(cut: int) -> None:
    """vLLM's says the whole prompt again."""
    tokenizer = build_tokenizer(512)
    before = tokenizer.encode("long ago. " * 100, add_special_tokens=False)
    face = tokenizer.encode("\U0001f600", add_special_tokens=False)
    assert len(face) == 4
    told = said(_Primed, tokenizer, before + face[:cut], face[cut:] + before[:4])
    assert "".join(told) == "\U0001f600long"


def test_only_the_end_of_a_prompt_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    stream = decoders.DecodeStream

    def counted(ids: list[int] | None = None, skip_special_tokens: bool = False) -> Any:
        read.append(len(ids or []))
        return stream(ids=ids, skip_special_tokens=skip_special_tokens)

    monkeypatch.setattr(tokenizers.decoders, "DecodeStream", counted)
    said(_Primed, build_tokenizer(512), [5] * 10_000, [6])
    assert read[-1] < PRIMED
