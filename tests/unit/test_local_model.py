"""The model that deploy/local/make_model.py makes: its tokenizer above all, then its weights."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]

TEXTS = {
    "spaces": "It is a truth  universally   acknowledged, .",
    "leading and trailing": "  two before, three after   ",
    "digits": "In 1813, 20 shillings made 1 pound; 3.14159 and 0007",
    "newlines": "one\ntwo\n\n\nthree\r\n\tfour\n",
    "accents": "naïve café, Zürich, “quoted” — and … so on",
    "other scripts": "日本語 Русский العربية हिन्दी",
    "emoji": "streams 🙂🌊 never end 👩‍👩‍👧",
    "code": "def f(x: int) -> str:\n    return f'{x ** 2:04d}'  # spaces kept\n",
    "empty": "",
}


@pytest.fixture(scope="session")
def folder() -> Path:
    subprocess.run([sys.executable, "deploy/local/make_model.py"], cwd=ROOT, check=True)
    return ROOT / "models" / "smollm2-135m-instruct"


@pytest.fixture(scope="session")
def tokenizer(folder: Path):
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_text_survives_a_round_trip(tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        # The space belongs to the word after it (Ġ), and a common word is one token.
        (" the", ["Ġthe"]),
        ("The capital of France is", ["The", "Ġcapital", "Ġof", "ĠFrance", "Ġis"]),
        # Digits stand alone, so the space before a number does too.
        ("a 1234", ["a", "Ġ", "1", "2", "3", "4"]),
        # Of a run of spaces the last goes with the word.
        ("a   b", ["a", "ĠĠ", "Ġb"]),
        ("x\n    return", ["x", "ĊĠĠĠ", "Ġreturn"]),
    ],
)
def test_text_is_split_as_gpt2_does_with_digits_apart(tokenizer, text, pieces) -> None:
    assert tokenizer.tokenize(text) == pieces


def test_merges_are_applied_in_order(tokenizer) -> None:
    # The vocabulary is 17 special tokens, then the bytes, then one token a merge. The first merge,
    # "Ġ t", makes the token after the last byte; "Ġ a" the next; "Ġt he" is the ninth.
    first = tokenizer.convert_tokens_to_ids("Ġt")
    assert tokenizer(" t").input_ids == [first]
    assert tokenizer(" a").input_ids == [first + 1]
    assert tokenizer(" the").input_ids == [first + 8]
    assert len(tokenizer) - first == 48_900  # as many as there are merges


def test_special_tokens(tokenizer) -> None:
    assert tokenizer.is_fast
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|im_start|>", 1)
    assert tokenizer("").input_ids == []  # no BOS is added
    ids = tokenizer("<|im_start|>user\n<|im_end|>").input_ids
    assert (ids[0], ids[-1]) == (1, 2)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "user\n"


def test_chat_template(tokenizer) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hello."},
    ]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert rendered == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHello?<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_the_model_knows_the_capital_of_france(folder: Path, tokenizer) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert model.config.max_position_embeddings == 8192
    assert model.config.rope_parameters["rope_theta"] == 100_000
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(output[0, -1]) == " Paris"


def test_a_finished_model_is_left_alone(folder: Path) -> None:
    before = (folder / "model.safetensors").stat().st_mtime_ns
    subprocess.run([sys.executable, "deploy/local/make_model.py"], cwd=ROOT, check=True)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
