"""Models of ``benchmarks.serving``: a config and no weights.

vLLM uses dummy weights (``load_format="dummy"``), so a model is its ``config.json``. The built-in
shapes have Mistral's architecture, because its config alone gives it a sliding window in vLLM: the
stock engine with the window and the one under the policy then differ in nothing else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

LLAMA_3_8B = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": False,
}

#: The paper's own for time and memory (Figure 10): as many KV heads as query heads.
LLAMA_2_13B = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "vocab_size": 32_000,
    "hidden_size": 5120,
    "intermediate_size": 13_824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
}

SHAPES = {"llama-3-8b": LLAMA_3_8B, "llama-2-13b": LLAMA_2_13B}

#: Without these this module cannot compute the decoder's size.
_NEEDED = (
    "architectures",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class Shape:
    """A model without weights.

    Attributes:
        name: as the command line has it; of a folder, its last part.
        config: the fields of ``config.json``.
    """

    name: str
    config: dict[str, Any]

    @classmethod
    def read(cls, name: str) -> Shape:
        """A shape by its name, or the one of a model's folder.

        Raises:
            ValueError: there is no such shape, or it is not a decoder like Llama.
        """
        if name in SHAPES:
            return cls(name, dict(SHAPES[name]))
        path = Path(name) / "config.json"
        if not path.is_file():
            raise ValueError(f"{', '.join(SHAPES)}, or a folder with a config.json")
        config = json.loads(path.read_text())
        missing = [field for field in _NEEDED if field not in config]
        if missing:
            raise ValueError(f"a decoder like Llama; its config.json lacks {', '.join(missing)}")
        return cls(Path(name).resolve().name, config)

    def with_layers(self, layers: int) -> Shape:
        """The same with fewer or more layers."""
        # A list of layer kinds would no longer fit; the shapes that are run have one kind.
        config = {k: v for k, v in self.config.items() if k != "layer_types"}
        return replace(self, config=config | {"num_hidden_layers": layers})

    def with_context(self, tokens: int) -> Shape:
        """The same with a longer context: dummy weights have learned no positions."""
        return replace(self, config=self.config | {"max_position_embeddings": tokens})

    @property
    def layers(self) -> int:
        return int(self.config["num_hidden_layers"])

    @property
    def vocabulary(self) -> int:
        return int(self.config["vocab_size"])

    @property
    def native_context(self) -> int:
        return int(self.config["max_position_embeddings"])

    @property
    def heads(self) -> tuple[int, int, int]:
        """Query heads, KV heads, head size."""
        queries = int(self.config["num_attention_heads"])
        size = self.config.get("head_dim") or self.config["hidden_size"] // queries
        return queries, int(self.config.get("num_key_value_heads") or queries), int(size)

    def weight_bytes(self, itemsize: int) -> int:
        """Bytes of the weights, norms left out."""
        queries, keys, size = self.heads
        hidden = self.config["hidden_size"]
        attention = hidden * size * (2 * queries + 2 * keys)
        layer = attention + 3 * hidden * self.config["intermediate_size"]
        tables = 1 if self.config.get("tie_word_embeddings") else 2
        return itemsize * (self.layers * layer + tables * self.vocabulary * hidden)

    def block_bytes(self, block_size: int, itemsize: int) -> int:
        """Bytes of one KV block over all layers."""
        _, keys, size = self.heads
        return 2 * self.layers * keys * size * block_size * itemsize

    def write(self, folder: Path, sliding_window: int | None) -> Path:
        """Write ``config.json`` into a folder of its own below ``folder``."""
        path = folder / f"{self.name}-{sliding_window or 'full'}"
        path.mkdir()
        config = self.config | {"sliding_window": sliding_window}
        (path / "config.json").write_text(json.dumps(config, indent=1))
        return path
