"""The model that deploy/local/make_gemma.py makes, if it has been made (its terms apply)."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.unit.test_local_model import TEXTS

FOLDER = Path(__file__).resolve().parents[2] / "models" / "gemma-3-270m"
pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="needs models/gemma-3-270m, which `make gemma` makes"
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_text_survives_a_round_trip(tokenizer, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == text


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("The capital of France is", ["The", "▁capital", "▁of", "▁France", "▁is"]),
        ("a 1234", ["a", "▁", "1", "2", "3", "4"]),  # digits stand alone
        ("a   b", ["a", "   ", "b"]),  # runs of spaces and of newlines are tokens of their own
        ("a\n\nb", ["a", "\n\n", "b"]),
        ("\r", ["<0x0D>"]),  # unknown characters are bytes
    ],
)
def test_text_is_split_as_gemma_does(tokenizer, text: str, pieces: list[str]) -> None:
    assert tokenizer.tokenize(text) == pieces


def test_it_reads_english(tokenizer) -> None:
    # Which layers are local, and at what angle those turn, is in no field of the file; its norms
    # are off by one. The text is longer than a local layer's window.
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text()[:4000]
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert ids.shape[1] > 600
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    assert model.config.layer_types.count("full_attention") == 3
    with torch.no_grad():
        logprobs = model(ids).logits[0, :-1].log_softmax(-1)
    nll = -logprobs.gather(1, ids[0, 1:, None]).mean().item()
    assert math.exp(nll) < 60
