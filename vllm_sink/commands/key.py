"""The API key of a server."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from vllm_sink.errors import PolicyError

#: Where a key is looked for, in this order: vLLM's variable, then the OpenAI client's.
KEY_VARIABLES = ("VLLM_API_KEY", "OPENAI_API_KEY")


@dataclass(frozen=True)
class Key:
    """An API key; nothing prints its value.

    Attributes:
        value: the key.
        source: the flag or the variable that it comes from.
    """

    value: str = field(repr=False)
    source: str

    @classmethod
    def find(cls, flag: str | None) -> Key | None:
        """The key of the flag, else the environment's; None if there is none.

        Raises:
            PolicyError: no HTTP header can carry it.
        """
        sources = {"--api-key": flag} | {name: os.environ.get(name) for name in KEY_VARIABLES}
        for source, value in sources.items():
            # A secret that was read from a file often ends with a newline.
            if value := (value or "").strip():
                if not (value.isascii() and value.isprintable()):
                    raise PolicyError(source, "a key that no header can carry", "printable ASCII")
                return cls(value, source)
        return None
