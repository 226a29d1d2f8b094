"""The view of ``top``: a server's streams, blocks and rates, from two scrapes of its metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vllm_sink.commands.scrape import Metrics

#: Characters of a bar.
BAR = 32

#: Number of tenants that are shown, by blocks.
TENANTS = 10


class Looks(NamedTuple):
    """Two scrapes of a server's metrics.

    Attributes:
        before: the earlier one.
        now: the later one.
        elapsed: seconds between the two.
    """

    before: Metrics
    now: Metrics
    elapsed: float

    def level(self, name: str, **labels: str) -> float:
        """The current value of a metric of this project."""
        return self.now.sum(f"vllm_sink_{name}", **labels)

    def rate(self, name: str) -> float:
        """The increase of a counter per second."""
        return max(0.0, self.now.sum(name) - self.before.sum(name)) / self.elapsed


def view(url: str, looks: Looks) -> RenderableType:
    """One view of the server at ``url``."""
    return Group(
        *map(_line, _engines(url, looks)),
        _line(_streams(looks)),
        _blocks(looks),
        *map(_line, _rates(looks)),
        _tenants(looks),
    )


def bar(share: float) -> str:
    """A share from 0 to 1 as a bar."""
    full = round(min(1.0, max(0.0, share)) * BAR)
    return "█" * full + "·" * (BAR - full)


def _line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def _engines(url: str, looks: Looks) -> Iterator[str]:
    for info, _ in looks.now.of("vllm_sink_info"):
        yield (
            f"{url}  {info['model_name']} engine {info['engine']}  {info['policy']} "
            f"S={info['sink_tokens']} W={info['window_tokens']} of {info['native_context']}  "
            f"attention: {info['attention_provider']}"
        )


def _streams(looks: Looks) -> str:
    return (
        f"streams    {looks.level('streams'):.0f} live, "
        f"{looks.level('streams_past_context'):.0f} past the context, "
        f"{looks.level('streams_that_fit'):.0f} fit; "
        f"{looks.now.sum('vllm_num_requests_waiting'):.0f} waiting"
    )


def _blocks(looks: Looks) -> Table:
    kinds = {kind: looks.level("blocks", kind=kind) for kind in ("sink", "window", "free")}
    total = max(1.0, sum(kinds.values()))
    rows = {f"{kind} blocks": value for kind, value in kinds.items()}
    rows["reserved"] = looks.level("reserved_blocks")
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(min_width=14, no_wrap=True)
    table.add_column(no_wrap=True, overflow="crop")
    table.add_column(min_width=8, no_wrap=True, justify="right")
    for name, value in rows.items():
        table.add_row(name, bar(value / total), f"{value:,.0f}")
    return table


def _rates(looks: Looks) -> Iterator[str]:
    yield (
        f"churn      {looks.rate('vllm_sink_blocks_recycled_total'):,.1f} blocks/s, "
        f"{looks.rate('vllm_sink_tokens_evicted_total'):,.1f} tokens/s evicted"
    )
    yield (
        f"tokens     {looks.rate('vllm_generation_tokens_total'):,.1f}/s generated, "
        f"{looks.rate('vllm_prompt_tokens_total'):,.1f}/s prompt"
    )
    engines = sum(1 for _ in looks.now.of("vllm_sink_window_occupancy_ratio")) or 1
    yield f"windows    {looks.level('window_occupancy_ratio') / engines:.0%} full"
    yield (
        f"so far     {looks.level('admissions_total'):,.0f} admitted, "
        f"{looks.level('admissions_refused_total'):,.0f} refused, "
        f"{looks.level('preemptions_total'):,.0f} preempted, "
        f"{looks.level('rollovers_total'):,.0f} rollovers, "
        f"{looks.level('stream_tokens_count'):,.0f} ended"
    )


def _tenants(looks: Looks) -> Table:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(min_width=26, no_wrap=True)
    table.add_column(min_width=4, no_wrap=True, justify="right")
    table.add_column(no_wrap=True)
    table.add_column(min_width=8, no_wrap=True, justify="right")
    table.add_column(no_wrap=True)
    tenants = sorted(looks.now.of("vllm_sink_tenant_blocks"), key=lambda tenant: -tenant[1])
    for labels, blocks in tenants[:TENANTS]:
        name = labels["tenant"]
        live = looks.level("tenant_streams", tenant=name)
        # Text, so that rich reads no markup in a name.
        table.add_row(Text(f"  {name}"), f"{live:.0f}", "streams", f"{blocks:,.0f}", "blocks")
    return table
