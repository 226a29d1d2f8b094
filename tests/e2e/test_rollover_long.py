"""Long streams: the sizes that the README claims."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.e2e.engines import engine, greedy, prompt, random_tokens, scheduler_of
from tests.models.factory import make_tiny
from tests.reference import SinkReference

pytestmark = pytest.mark.slow

SINKS, WINDOW, SEGMENT = 4, 509, 2048
MODELS = Path(__file__).parents[2] / "models"
MODEL = MODELS / "smollm2-135m-instruct"
TEXT = MODELS / "texts" / "pride_and_prejudice.txt"


def test_sixty_thousand_tokens(tmp_path: Path) -> None:
    """At least 30 rollovers; every token has the reference's log-probability, to 1e-4."""
    folder = make_tiny("llama-gqa", tmp_path / "model", max_position_embeddings=1024)
    tokens, count = random_tokens(100), 60_000
    with engine(
        folder, WINDOW, SINKS, segment_tokens=SEGMENT, max_model_len=None, max_num_seqs=1
    ) as llm:
        params = greedy(count, flat_logprobs=True, detokenize=False)
        (output,) = llm.generate(prompt(tokens), params, use_tqdm=True)
        rollovers = scheduler_of(llm).rollovers
    completion = output.outputs[0]
    said = list(completion.token_ids)
    assert len(said) == count
    assert rollovers >= 30
    told = torch.tensor(completion.logprobs.logprobs, dtype=torch.float64)
    every = tokens + said
    expected = SinkReference(folder, SINKS, WINDOW, progress=True).logprobs_of(every)
    difference = (told - expected[len(tokens) - 1 :].double()).abs()
    tenths = difference.view(10, -1)
    told_maxima = ", ".join(f"{d:.1e}" for d in tenths.max(-1).values)
    print(f"{rollovers} rollovers; largest difference of each 6,000 tokens: {told_maxima}")
    assert difference.max() < 1e-4, f"{difference.max():.2e} at token {difference.argmax()}"
    # It does not grow either. (The mean: the largest of 6,000 differences varies threefold.)
    assert tenths[-1].mean() < 2 * tenths[1].mean()


@pytest.mark.skipif(not TEXT.is_file(), reason="make model text builds them")
def test_a_real_model_says_the_same_in_any_segment() -> None:
    """It continues a chapter: the first rollover is near, the second a segment later."""
    answers = []
    for segment in (SEGMENT, 65_536):
        with engine(
            MODEL,
            WINDOW,
            SINKS,
            segment_tokens=segment,
            max_model_len=None,
            max_num_seqs=1,
            max_num_batched_tokens=512,
            block_size=32,
        ) as llm:
            tokens = llm.get_tokenizer().encode(TEXT.read_text()[:12_000])[:1900]
            (output,) = llm.generate(prompt(tokens), greedy(1800), use_tqdm=True)
            rollovers = scheduler_of(llm).rollovers
        assert (rollovers >= 2) == (segment == SEGMENT)
        answers.append(output.outputs[0])
    assert answers[0].text == answers[1].text
    assert answers[0].token_ids == answers[1].token_ids
