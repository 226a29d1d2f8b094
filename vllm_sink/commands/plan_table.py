"""What streams of each window cost, as numbers and as a table."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from vllm_sink import policy
from vllm_sink.cache.stream_reservations import streams_that_fit
from vllm_sink.commands import terminal
from vllm_sink.commands.pool import GIB
from vllm_sink.config.admission import DEFAULT_STREAM_SHARE, FLAGS
from vllm_sink.errors import PolicyError

MIB = 2**20

#: Columns and their widths.
COLUMNS = {
    "window": 8,
    "blocks": 7,
    "prefilling": 10,
    "KV/stream": 11,
    "streams": 8,
    "read/token": 11,
    "read/step": 10,
    "steps/s": 8,
}


def usual_windows(verdict: dict[str, Any]) -> list[int]:
    """Powers of two from 512 on that leave room for the sinks, and the largest possible window."""
    largest = verdict["native_context"] - verdict["sink_tokens"]
    windows, window = [], 512
    while window < largest:
        windows.append(window)
        window *= 2
    return [*windows, largest]


def row(plan: dict[str, Any], verdict: dict[str, Any], window: int) -> dict[str, Any]:
    """What streams of one window cost.

    Raises:
        PolicyError: sinks and window pass the model's context.
    """
    sinks, size = plan["sink_tokens"], plan["block_size"]
    largest = plan["native_context"] - sinks
    if not 1 <= window <= largest:
        raise PolicyError("--window-tokens", window, f"1 to {largest}")

    def blocks(in_flight: int) -> int:
        return policy.max_blocks(sinks, window, in_flight, verdict["segment_tokens"], size)

    block_bytes = size * plan["kv_bytes_per_token"]
    # One block of the pool is vLLM's null block.
    pool_blocks = plan["kv_pool_bytes"] // block_bytes - 1
    fit = streams_that_fit(pool_blocks, DEFAULT_STREAM_SHARE, pool_blocks, blocks(1))
    read = (sinks + window) * plan["kv_bytes_per_token"]
    step = fit * read + (plan["weight_bytes"] or 0)
    bandwidth = plan["bandwidth_bytes"]
    return {
        "window_tokens": window,
        "blocks_per_stream": blocks(1),
        "blocks_while_prefilling": blocks(verdict["max_in_flight_tokens"]),
        "kv_bytes_per_stream": blocks(1) * block_bytes,
        "streams": fit,
        "kv_bytes_read_per_token": read,
        "bytes_read_per_step": step,
        "most_steps_per_second": bandwidth / step if bandwidth and fit else None,
    }


def render(plan: dict[str, Any]) -> str:
    """The plan as text."""
    lines = [
        f"{plan['model']}: {plan['dtype']}, {plan['kv_bytes_per_token'] / 1024:,.1f} KiB of KV a "
        f"token, blocks of {plan['block_size']} tokens, {plan['sink_tokens']} sink tokens",
        f"KV pool: {plan['kv_pool_bytes'] / GIB:,.2f} GiB ({plan['kv_pool']})",
        "",
        terminal.plain_text(_table(plan["windows"])),
        "",
        f"streams: endless ones, in {DEFAULT_STREAM_SHARE:g} of the pool "
        f"({FLAGS['stream_share']}); the rest is for requests that end.",
        "read/token: KV that one stream reads for a token. read/step: the weights, and the KV of "
        "all streams that fit.",
        "steps/s: tokens a second of each of them if memory were the only limit"
        + ("." if plan["bandwidth_bytes"] else "; name --bandwidth to see it."),
    ]
    return "\n".join(lines)


def _table(windows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name, width in COLUMNS.items():
        table.add_column(name, justify="right", min_width=width, no_wrap=True)
    for window in windows:
        steps = window["most_steps_per_second"]
        table.add_row(
            f"{window['window_tokens']:,}",
            f"{window['blocks_per_stream']:,}",
            f"{window['blocks_while_prefilling']:,}",
            f"{window['kv_bytes_per_stream'] / MIB:,.1f} MiB",
            f"{window['streams']:,}",
            f"{window['kv_bytes_read_per_token'] / MIB:,.1f} MiB",
            f"{window['bytes_read_per_step'] / GIB:,.2f} GiB",
            "–" if steps is None else f"{steps:,.0f}",
        )
    return table
