"""A tokenizer for the tiny models: one token for each byte that UTF-8 can hold.

So one ASCII character is one token, and a test can count tokens by counting characters. Any id
below the vocabulary size decodes to something: a special token, a byte, or one of a few whole words
that text never encodes to.
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
BOS_ID, EOS_ID, PAD_ID = 0, 1, 2
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def _utf8_bytes() -> list[int]:
    """The 243 byte values that occur in valid UTF-8: ASCII, continuation bytes, lead bytes."""
    return [*range(0xC0), *range(0xC2, 0xF5)]


def _symbol(byte: int) -> str:
    """The printable character that GPT-2's byte-level scheme writes `byte` as."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    if byte in printable:
        return chr(byte)
    return chr(0x100 + [b for b in range(0x100) if b not in printable].index(byte))


def build_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    specials = [BOS, EOS, PAD, *ROLES]
    entries = specials + [_symbol(byte) for byte in _utf8_bytes()]
    entries += [f"\u0120word{i}" for i in range(vocab_size - len(entries))]
    backend = Tokenizer(
        models.BPE(vocab={entry: i for i, entry in enumerate(entries)}, merges=[], unk_token=None)
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=1_000_000_000,
    )
