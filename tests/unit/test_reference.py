"""The oracle must be right, and it must see.

Right: without eviction it is Hugging Face's own forward; with eviction, in a model of one layer
(where a key depends on its own token alone) it is that forward over just the visible tokens.
Sees: one sink, one window token or the wrong positions show in the log-probabilities.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tests.models import ARCHITECTURES, make_tiny
from tests.reference import SinkReference

CONTEXT = 112  # beyond every tiny model's own sliding window, within its native context
HF_TOLERANCE = 1e-4  # float32 through and through, Hugging Face's angles too
VISIBLE = 1e-2

LOCAL_LAYERS = {"gemma2": 48, "gemma3": 32}

# The field in which a config counts its layers.
LAYER_FIELDS = ("num_hidden_layers", "n_layer", "n_layers")


def tokens(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(7, 256, (count,), generator=generator).tolist()


@cache
def checkpoint(root: Path, arch: str) -> Path:
    return make_tiny(arch, root / arch)


@cache
def one_layer(root: Path, arch: str, kind: str = "full_attention") -> Path:
    config = ARCHITECTURES[arch].config
    overrides: dict[str, object] = {name: 1 for name in LAYER_FIELDS if name in config}
    if arch in LOCAL_LAYERS:
        overrides["layer_types"] = [kind]
    return make_tiny(arch, root / f"{arch}-{kind}", **overrides)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


def hugging_face(folder: Path) -> PreTrainedModel:
    # Eager, save for ALiBi Falcon: transformers 5.19's eager path adds its ALiBi twice (once with
    # the mask, once to the scores).
    eager = not folder.name.startswith("falcon-alibi")
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager" if eager else "sdpa"
    ).eval()


@torch.no_grad()
def forward(model: PreTrainedModel, token_ids: list[int]) -> Tensor:
    """Log-probabilities after each token, [T, vocabulary]."""
    return model(torch.tensor([token_ids]), use_cache=False).logits[0].log_softmax(-1)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


# Right ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_full_attention_is_hugging_faces_forward(arch: str, root: Path) -> None:
    """Every position of a context that is longer than the model's own sliding window, if any."""
    folder = checkpoint(root, arch)
    stream = tokens(CONTEXT)
    expected = forward(hugging_face(folder), stream)
    assert distance(SinkReference(folder, 0, None).score(stream), expected) < HF_TOLERANCE


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("sinks", "window"), [(3, 12), (0, 9)])
def test_one_layer_sees_the_visible_tokens_at_their_cache_positions(
    arch: str, sinks: int, window: int, root: Path
) -> None:
    """visible(t) = {0 … S-1} ∪ {j : t - W < j ≤ t}, at positions 0, 1, 2 … without a gap."""
    folder = one_layer(root, arch)
    stream = tokens(3 * (sinks + window) + 5)
    ours = SinkReference(folder, sinks, window).score(stream)
    model = hugging_face(folder)
    for t in {0, sinks + window - 1, sinks + window, len(stream) - 1}:
        visible = [j for j in range(t + 1) if j < sinks or t - window < j]
        expected = forward(model, [stream[j] for j in visible])[-1]
        assert distance(ours[t], expected) < HF_TOLERANCE


@pytest.mark.parametrize("arch", LOCAL_LAYERS)
@pytest.mark.parametrize(("window", "seen"), [(20, 20), (60, None)])
def test_a_local_layer_has_no_sinks_and_the_smaller_window(
    arch: str, window: int, seen: int | None, root: Path
) -> None:
    folder = one_layer(root, arch, "sliding_attention")
    stream = tokens(CONTEXT)
    ours = SinkReference(folder, 4, window).score(stream)
    expected = forward(hugging_face(folder), stream[-(seen or LOCAL_LAYERS[arch]) :])
    assert distance(ours[-1], expected[-1]) < HF_TOLERANCE


@pytest.mark.parametrize(("sinks", "window"), [(0, 1), (3, 1), (0, 7), (4, 9)])
def test_cache_holds_the_visible_set_at_every_token(sinks: int, window: int, root: Path) -> None:
    reference = SinkReference(checkpoint(root, "llama"), sinks, window)
    for t, token in enumerate(tokens(40)):
        reference.step(token)
        visible = [j for j in range(t + 1) if j < sinks or t - window < j]
        for layer in reference.caches:
            assert layer.indices == visible
            assert len(layer.keys) - 1 == min(t, sinks + window - 1)  # p(t)


def test_nothing_is_evicted_from_a_short_stream(root: Path) -> None:
    reference = SinkReference(checkpoint(root, "llama-gqa"), 4, 28)
    stream = tokens(32)
    assert torch.equal(reference.score(stream), reference.with_policy(0, None).score(stream))


# Sees -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_it_sees_one_sink_one_window_token_and_the_positions(arch: str, root: Path) -> None:
    sinks, window = 3, 14
    reference = SinkReference(checkpoint(root, arch), sinks, window)
    stream = tokens(2 * (sinks + window))
    policy = reference.score(stream)
    # A local layer has no sinks to fill first, so it evicts sooner.
    evicts_at = window - 1 if arch in LOCAL_LAYERS else sinks + window - 1
    for name, other in {
        "one sink more": reference.with_policy(sinks + 1, window),
        "one window token less": reference.with_policy(sinks, window - 1),
        "sinks at their true positions": reference.with_policy(sinks, window, true_positions=True),
        "no sinks": reference.with_policy(0, sinks + window),
    }.items():
        changed = (other.score(stream) - policy).abs().amax(-1)  # [T]
        assert changed[:evicts_at].max() == 0, f"{name}: differs before any eviction"
        assert changed.max() > VISIBLE, name
        assert changed[sinks + window + 1 :].median() > VISIBLE, name


def test_mistral_policy_replaces_the_models_own_window(root: Path) -> None:
    """Mistral's window is one for all layers: the policy takes its place, and must fit in it."""
    folder = checkpoint(root, "mistral")
    reference = SinkReference(folder, 4, 60)
    without = SinkReference(checkpoint(root, "mistral-nosw"), 4, 60)
    stream = tokens(CONTEXT)
    assert torch.equal(reference.score(stream), without.score(stream))
    assert (
        distance(
            reference.with_policy(0, None).score(stream), without.with_policy(0, None).score(stream)
        )
        > VISIBLE
    )
    with pytest.raises(ValueError, match=r"97 exceeds .* sliding window 96"):
        reference.with_policy(4, 93)


# The interface ----------------------------------------------------------------------------------


def test_each_way_to_ask_gives_the_same_answer(root: Path) -> None:
    reference = SinkReference(checkpoint(root, "llama"), 2, 12)
    prompt = tokens(20)
    chosen = reference.greedy(prompt, 20)
    stream = prompt + chosen
    scores = reference.score(stream)
    assert scores[len(prompt) - 1 : -1].argmax(-1).tolist() == chosen
    own = scores[:-1].gather(1, torch.tensor(stream[1:])[:, None])[:, 0]
    assert torch.equal(reference.logprobs_of(stream), own)

    reference.reset()
    stepped = [reference.step(token) for token in stream]
    assert torch.equal(torch.stack(stepped), scores)


def test_float64_confirms_float32(root: Path) -> None:
    folder = checkpoint(root, "llama-yarn")
    stream = tokens(150)
    double = SinkReference(folder, 4, 40, dtype=torch.float64).score(stream)
    assert double.dtype == torch.float64
    assert distance(SinkReference(folder, 4, 40).score(stream), double) < HF_TOLERANCE


@pytest.mark.parametrize("policy", [(-1, 4), (4, 0)])
def test_what_is_no_policy_is_refused(policy: tuple[int, int], root: Path) -> None:
    with pytest.raises(ValueError, match="not a policy"):
        SinkReference(checkpoint(root, "llama"), *policy)


# The tiny models --------------------------------------------------------------------------------


def test_a_finished_model_is_left_alone_and_another_replaced(tmp_path: Path) -> None:
    folder = make_tiny("llama", tmp_path / "model")
    weights = folder / "model.safetensors"
    first, written = weights.read_bytes(), weights.stat().st_mtime_ns
    assert make_tiny("llama", folder) == folder
    assert weights.stat().st_mtime_ns == written
    make_tiny("llama", folder, seed=1)
    assert weights.read_bytes() != first
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_of_another_kind_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(OSError, match="not empty"):
        make_tiny("llama", tmp_path)
    assert (tmp_path / "precious").read_text() == "mine"


def test_tokenizer_counts_ascii_and_survives_a_round_trip(root: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint(root, "llama"))
    text = "Sinks, wörtlich ✓\n\t日本"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("a b  c.")) == 7
    assert len(tokenizer) == 256
    chat = [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]
    rendered = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert rendered == "<s><|system|>be<|end|><|user|>hi<|end|><|assistant|>"
    assert len(tokenizer.encode(rendered)) == 10
