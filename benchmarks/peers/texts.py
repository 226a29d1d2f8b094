"""The text that all peers read, as tokens."""

from __future__ import annotations

from pathlib import Path


def text_tokens(model: str, text: Path, count: int) -> list[int]:
    """The first ``count`` tokens of the text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    # The first tokens need only the first characters.
    tokens: list[int] = tokenizer.encode(text.read_text(encoding="utf-8")[: 16 * count])
    if len(tokens) < count:
        raise SystemExit(f"{text} has {len(tokens)} tokens, but {count} are asked for")
    return tokens[:count]
