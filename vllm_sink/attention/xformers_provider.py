"""The ``xformers`` provider: a check on the others, and for GPUs older than Ampere.

xformers 0.0.35 has no paged bias with a window, and its one paged op without the flash-attn package
(``triton_splitk``) requires pages of 64 and heads of a power of two. So the keys that a run of
queries sees are gathered, one run after the other, and attended to under biases for runs of any
length::

    window   BlockDiagonalCausalLocalAttentionFromBottomRightMask: the last query of a run stands
             at its last key, each query sees W keys back; rows of one W in one call
    sinks    the same with no key too far back, for runs that see one sink more a query
             (the staircase) and for single queries; BlockDiagonalMask for runs that see all

Both partial softmaxes merge by log-sum-exp. Two ops know these biases; neither is xformers' own
code, both come with torch: ``flash`` (FlashAttention 2, from Ampere on) and ``cutlass`` (up to
Hopper). Masks are made on the host: not for CUDA graphs.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from vllm_sink.attention.layer import LayerParams
from vllm_sink.attention.paged_step import PagedStep
from vllm_sink.attention.xformers_runs import Run, RunBatch, batches, sink_runs, window_runs

#: Bytes of keys and values that are gathered for one call; a longer run is gathered alone.
MAX_GATHERED_BYTES = 256 << 20

#: xformers' names of the ops, best first.
OPERATORS = ("flash", "cutlass")


def _fmha() -> Any:
    """xformers' attention module.

    Raises:
        ImportError: if it is missing, or rejects this torch or flash-attn.
    """
    fmha = importlib.import_module("xformers.ops.fmha")
    # The wheel's own library wants CUDA 12 and does not load next to torch for CUDA 13; xformers
    # then declines all work on a GPU. Both ops used here are torch's, and need nothing of it.
    fmha.common._built_with_cuda = True
    return fmha


def _operator(
    layer: LayerParams, dtype: torch.dtype, operators: tuple[str, ...] = OPERATORS
) -> tuple[Any, str]:
    """The first op that says it can do this layer, or None and why each cannot."""
    if not torch.cuda.is_available() or torch.version.cuda is None:
        return None, "there is no NVIDIA GPU"
    try:
        fmha = _fmha()
    except (ImportError, OSError, RuntimeError) as error:
        return None, f"it does not import: {error}"
    device = torch.device("cuda", torch.cuda.current_device())
    tokens = torch.empty(1, 1, layer.num_heads, layer.head_size, dtype=dtype, device=device)
    reasons = []
    for name in operators:
        op = getattr(fmha, name).FwOp
        inputs = fmha.Inputs(
            tokens,
            tokens,
            tokens,
            attn_bias=_bias(fmha, [Run(0, 0, 1, 0, 1)], 1, device),
            scale=layer.scale,
            is_partial=op.SUPPORTS_PARTIAL,
        )
        refused = op.not_supported_reasons(inputs)
        if not refused:
            return op, ""
        reasons.append(f"{op.NAME}: {', '.join(refused)}")
    return None, "; ".join(reasons)


def _bias(fmha: Any, runs: list[Run], window: int | None, device: torch.device) -> Any:
    """The mask over runs end to end; without a window every query sees all keys of its run."""
    queries, keys = [r.queries for r in runs], [r.keys for r in runs]
    bias = fmha.attn_bias.BlockDiagonalMask.from_seqlens(queries, keys, device=device)
    return bias if window is None else bias.make_local_attention_from_bottomright(window)


def unsupported(layer: LayerParams, dtype: torch.dtype) -> str | None:
    """Why this provider cannot compute a layer, or None. Any size of block will do."""
    if layer.alibi_slopes is not None:
        return "it has no ALiBi for rows of different lengths"
    if layer.soft_cap:
        return "it has no soft cap on scores"
    op, reason = _operator(layer, dtype)
    return None if op is not None else reason


class XformersProvider:
    """Attention of one layer by xformers.

    Args:
        layer: of the layer.
        operators: the ops to choose from, best first.
    """

    def __init__(self, layer: LayerParams, operators: tuple[str, ...] = OPERATORS) -> None:
        self.layer = layer
        self.operators = operators
        self.op: Any = None

    def attend(
        self,
        step: PagedStep,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        output: torch.Tensor,
    ) -> None:
        """Attention of the step's tokens.

        Args:
            step: which tokens, which pages.
            query: [num_tokens, num_heads, head_size], rotated at their true index.
            key_cache, value_cache: [blocks, block_size, num_kv_heads, head_size], any strides.
            output: [num_tokens, num_heads, head_size], written; padding is left alone.
        """
        layer, host = self.layer, step.host
        assert host is not None
        if self.op is None:
            self.op, reason = _operator(layer, query.dtype, self.operators)
            if self.op is None:
                raise NotImplementedError(reason)
        # ``cutlass`` knows no groups of query heads: there each has keys of its own.
        heads = layer.num_kv_heads if self.op.SUPPORTS_PARTIAL else layer.num_heads
        max_keys = MAX_GATHERED_BYTES // (2 * heads * layer.head_size * query.element_size())
        lse = torch.empty(query.shape[:2], dtype=torch.float32, device=query.device)

        for window, of_window in window_runs(host, layer.window_tokens).items():
            for runs in batches(of_window, max_keys):
                batch = RunBatch(runs, query.device)
                out, lse_part = self._partial(
                    step, batch, query[batch.token], key_cache, value_cache, window
                )
                output[batch.token], lse[batch.token] = out, lse_part
        if not layer.sinks:
            return
        staircase, full = sink_runs(host)
        for in_staircase, all_runs in ((True, staircase), (False, full)):
            for runs in batches(all_runs, max_keys):
                batch = RunBatch(runs, query.device)
                turned = self._turned(step, batch, query)
                # As far back as the longest run: for a single query, all its keys. (Were there no
                # window, FlashAttention would give such queries a layout of their own.)
                reach = max(r.keys for r in runs) if in_staircase else None
                sink_out, sink_lse = self._partial(
                    step, batch, turned, key_cache, value_cache, reach
                )
                parts = [output[batch.token][None], sink_out[None]]
                lses = [lse[batch.token].T[None], sink_lse.T[None]]
                merged, _ = _fmha().merge_attentions(parts, lses)
                output[batch.token] = merged[0]

    def _turned(self, step: PagedStep, batch: RunBatch, query: torch.Tensor) -> torch.Tensor:
        """The queries of ``batch`` as they meet the sinks: [queries, num_heads, head_size]."""
        assert step.host is not None
        host = step.host
        # The largest cache position of each run's stream.
        last_positions = [host.sinks[r.row] + host.windows[r.row] - 1 for r in batch.runs]
        last = torch.tensor(last_positions, device=query.device)
        evicted = (step.positions[batch.token] - last[batch.run]).clamp(min=0)
        turned = self.layer.turn_back(query[batch.token][None], evicted[None])
        return turned[0].to(query.dtype)

    def _partial(
        self,
        step: PagedStep,
        batch: RunBatch,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        window: int | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention of the queries of ``batch`` over its keys, and its log-sum-exp.

        Args:
            query: [queries, num_heads, head_size].
            window: keys that a query sees at most, the last of its run aligned; None for all.

        Returns:
            [queries, num_heads, head_size] in the dtype of ``query``, float32 [queries, num_heads].
        """
        layer, fmha = self.layer, _fmha()
        group = layer.group
        block = step.block_table[batch.key_row, batch.key // step.block_size].long()
        slot = batch.key % step.block_size
        key, value = key_cache[block, slot], value_cache[block, slot]  # [keys, kv_heads, head_size]
        bias = _bias(fmha, batch.runs, window, query.device)
        if self.op.SUPPORTS_PARTIAL:
            # [1, tokens, kv_heads, group, head_size]; keys repeat with stride 0.
            out, lse = fmha.memory_efficient_attention_partial(
                query.unflatten(1, (layer.num_kv_heads, group))[None],
                key[None, :, :, None].expand(-1, -1, -1, group, -1),
                value[None, :, :, None].expand(-1, -1, -1, group, -1),
                bias,
                scale=layer.scale,
                op=self.op,
            )
            # float32 [1, kv_heads, group, queries]
            return out[0].flatten(1, 2), lse[0].flatten(0, 1).T
        # The same result: ``cutlass`` does not declare itself partial.
        out, lse = fmha.memory_efficient_attention_forward_requires_grad(
            query[None],
            key.repeat_interleave(group, 1)[None],
            value.repeat_interleave(group, 1)[None],
            bias,
            scale=layer.scale,
            op=self.op,
        )
        # float32 [runs, num_heads, at least the queries of the longest run], padded.
        first_query = bias.q_seqinfo.seqstart[batch.run]
        query_of_run = torch.arange(len(query), device=query.device) - first_query
        return out[0], lse[batch.run, :, query_of_run]
