"""How many KV blocks the streams of ``benchmarks.serving`` need, and whether they fit."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.serving_shapes import Shape
from vllm_sink import policy

GIB = 2**30

#: Activations, CUDA graphs and the CUDA context of one engine: measured roughly, with room.
ENGINE_BYTES = 3 * GIB

#: Blocks that a stream may hold past ``max_blocks`` while a step is in flight.
SLACK_BLOCKS = 2


@dataclass(frozen=True)
class Sizes:
    """What fixes how many blocks streams need: the same numbers for every engine of a run.

    Attributes:
        sink_tokens, window_tokens: S and W.
        block_size: tokens of a KV block.
        chunk: maximum number of tokens of a step (``max_num_batched_tokens``).
        max_model_len: longest stream.
    """

    sink_tokens: int
    window_tokens: int
    block_size: int
    chunk: int
    max_model_len: int

    def sink_blocks(self, in_flight_tokens: int, total_tokens: int) -> int:
        """The maximum number of blocks that a stream under the policy holds."""
        return policy.max_blocks(
            self.sink_tokens, self.window_tokens, in_flight_tokens, total_tokens, self.block_size
        )

    @property
    def decoding(self) -> int:
        """Blocks of a stream that decodes, its window long full."""
        return self.sink_blocks(1, self.max_model_len)

    @property
    def prefilling(self) -> int:
        """Blocks of a stream with two whole steps in flight, as asynchronous scheduling has."""
        return self.sink_blocks(2 * self.chunk, self.max_model_len)

    def window_pool(self, streams: int, prompt_tokens: int) -> int:
        """Blocks for this many streams with a window, admitted one after another.

        All but the last decode. vLLM starts only if one stream of any length fits, and keeps one
        block for itself.
        """
        incoming = self.sink_blocks(min(2 * self.chunk, prompt_tokens), self.max_model_len)
        streaming = (streams - 1) * (self.decoding + SLACK_BLOCKS) + incoming
        return max(streaming, self.prefilling) + 16

    def full_pool(self, tokens: int) -> int:
        """Blocks for this many tokens, all kept, and for one stream of any length."""
        most = max(tokens, self.max_model_len)
        return policy.cdiv(most, self.block_size) + 16

    def streams_that_fit(self, pool_bytes: int, block_bytes: int, context: int) -> dict[str, int]:
        """How many streams of a length fit into a pool: all tokens kept, and under the policy.

        Under the policy all decode, and there is room for the last one to be admitted.
        """
        blocks = pool_bytes // block_bytes - 1  # vLLM keeps the null block
        decoding = self.sink_blocks(1, context)
        incoming = self.sink_blocks(2 * self.chunk, context)
        return {
            "full": max(0, blocks // policy.cdiv(context, self.block_size)),
            "sink": max(0, (blocks - (incoming - decoding)) // decoding),
        }


def require_memory(
    shape: Shape, pools: list[int], block_size: int, itemsize: int, free: int
) -> None:
    """Check that engines with pools of this many blocks fit, before starting them takes minutes.

    Raises:
        ValueError: naming what is needed and how many layers would fit.
    """

    def need(layers: int) -> int:
        cut = shape.with_layers(layers)
        weights = len(pools) * (cut.weight_bytes(itemsize) + ENGINE_BYTES)
        return weights + sum(pools) * cut.block_bytes(block_size, itemsize)

    if need(shape.layers) <= free:
        return
    fits = max((n for n in range(1, shape.layers) if need(n) <= free), default=0)
    raise ValueError(
        f"{f'at most {fits}' if fits else 'none on this GPU; take a smaller --batch'}: "
        f"{len(pools)} engines need {need(shape.layers) / GIB:.1f} GiB and "
        f"{free / GIB:.1f} GiB are free"
    )
