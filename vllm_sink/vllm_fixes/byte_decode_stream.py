"""Text of a byte-level tokenizer's tokens (Llama 3, Qwen, GPT-2).

A token's bytes do not depend on its neighbours, so the tokens' bytes are decoded as UTF-8; at most
three are held back.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

from vllm_sink.vllm_fixes.decode_stream import end_of

#: GPT-2's characters for bytes: printable ones stand for themselves, the others for U+0100 and up.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = (byte for byte in range(0x100) if byte not in _PRINTABLE)
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(0x100 + i): byte for i, byte in enumerate(_OTHERS)
}


def bytes_of(name: str) -> bytes:
    """The bytes of a token, from its name in the vocabulary."""
    try:
        return bytes([_BYTE_OF[character] for character in name])
    except KeyError:  # an added token, of characters that stand for no byte
        return name.encode()


class ByteDecodeStream:
    """Text of tokens that are bytes.

    The same text that decoding prompt and answer together adds to the prompt's own text.

    Args:
        read: a token id's bytes; None to skip it.
        prompt: token ids before the answer.
    """

    def __init__(self, read: Callable[[int], bytes | None], prompt: Sequence[int]) -> None:
        self._read = read
        data = b"".join(end_of(prompt, read))
        _, used = codecs.utf_8_decode(data, "replace", False)
        #: An incomplete UTF-8 sequence.
        self._open = data[used:]
        #: What the prompt's text already shows for it.
        self._shown = self._open.decode("utf-8", "replace")

    def step(self, token: int) -> str:
        data = self._read(token)
        return "" if data is None else self._text(data, False)

    def flush(self) -> str:
        return self._text(b"", True)

    def _text(self, data: bytes, final: bool) -> str:
        if self._open:
            data = self._open + data
        text, used = codecs.utf_8_decode(data, "replace", final)
        self._open = data[used:]
        if self._shown and text:
            text = text.removeprefix(self._shown)
            self._shown = ""
        return text
