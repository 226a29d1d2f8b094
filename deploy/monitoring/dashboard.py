"""Writes ``dashboard.json`` from ``panels.py``, with Grafana's own typed builders.

pip install grafana-foundation-sdk
python deploy/monitoring/dashboard.py [OUT]
"""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    LegendDisplayMode,
    LegendPlacement,
    ReduceDataOptions,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    GridPos,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from panels import ROWS, Panel

OUT = Path(__file__).with_name("dashboard.json")

#: Grafana's grid is 24 wide.
WIDTH = 24
STAT_HEIGHT, GRAPH_HEIGHT = 4, 8

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")


def _targets(panel: Panel) -> list[prometheus.Dataquery]:
    return [
        prometheus.Dataquery()
        .datasource(SOURCE)
        .expr(query.expr)
        .legend_format(query.legend)
        .ref_id(chr(ord("A") + i))
        for i, query in enumerate(panel.queries)
    ]


def _stat(panel: Panel) -> stat.Panel:
    steps = [Threshold(value=None, color="green")]
    if panel.warn is not None:
        steps.append(Threshold(value=panel.warn, color="orange"))
    if panel.alarm is not None:
        steps.append(Threshold(value=panel.alarm, color="red"))
    return (
        stat.Panel()
        .thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        .reduce_options(_Last())
    )


class _Last(common.ReduceDataOptions):
    """The latest value."""

    def build(self) -> ReduceDataOptions:
        return ReduceDataOptions(calcs=["lastNotNull"], values=False)


def _graph(panel: Panel) -> timeseries.Panel:
    legend = (
        common.VizLegendOptions()
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    made = (
        timeseries.Panel()
        .min(0)
        .line_width(1)
        .fill_opacity(30 if panel.stacked else 10)
        .legend(legend)
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    if panel.stacked:
        made = made.stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A"))
    return made


def _place(panels: tuple[Panel, ...], top: int) -> list[tuple[Panel, GridPos]]:
    """Stats in one row, graphs three in a row (two if that fills it); from grid row ``top`` on."""
    placed: list[tuple[Panel, GridPos]] = []
    for kind, height in (("stat", STAT_HEIGHT), ("graph", GRAPH_HEIGHT)):
        some = [p for p in panels if p.kind == kind]
        if not some:
            continue
        wide = len(some) if kind == "stat" else 2 if len(some) % 2 == 0 and len(some) % 3 else 3
        for i, panel in enumerate(some):
            x, width = i % wide * (WIDTH // wide), WIDTH // wide
            if i % wide == wide - 1:
                width = WIDTH - x  # the last takes what the division left
            y = top + i // wide * height
            placed.append((panel, GridPos(h=height, w=width, x=x, y=y)))
        top += -(-len(some) // wide) * height
    return placed


def _variables() -> list[dashboard.DatasourceVariable | dashboard.QueryVariable]:
    info = '{__name__=~"(ray_)?vllm_sink_info"}'
    of_model = '{__name__=~"(ray_)?vllm_sink_info", model_name=~"$model"}'
    source = dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    every = VariableOption(selected=True, text="All", value="$__all")
    queries = [
        ("model", "Model", f"label_values({info}, model_name)"),
        ("engine", "Engine", f"label_values({of_model}, engine)"),
    ]
    made: list[dashboard.DatasourceVariable | dashboard.QueryVariable] = [source]
    for name, label, query in queries:
        made.append(
            dashboard.QueryVariable(name)
            .label(label)
            .datasource(SOURCE)
            .query(query)
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_ASC)
            .include_all(True)
            .all_value(".*")
            .multi(True)
            .current(every)
        )
    return made


def build() -> dashboard.Dashboard:
    """The dashboard."""
    made = (
        dashboard.Dashboard("vLLM: streams with attention sinks")
        .uid("vllm-sink")
        .description("Streams, cache churn and limits of vllm-sink (--kv-policy sink).")
        .tags(["vllm", "vllm-sink"])
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
    )
    for variable in _variables():
        made = made.with_variable(variable)
    number, top = count(1), 0
    for title, panels in ROWS:
        row = dashboard.Row(title).id(next(number))
        made = made.with_row(row.grid_pos(GridPos(h=1, w=WIDTH, x=0, y=top)))
        placed = _place(panels, top + 1)
        for panel, where in placed:
            drawn: stat.Panel | timeseries.Panel = (
                _stat(panel) if panel.kind == "stat" else _graph(panel)
            )
            drawn = (
                drawn.id(next(number))
                .title(panel.title)
                .description(panel.help)
                .datasource(SOURCE)
                .unit(panel.unit)
                .grid_pos(where)
            )
            for target in _targets(panel):
                drawn = drawn.with_target(target)
            made = made.with_panel(drawn)
        top = max(where.y + where.h for _, where in placed)
    return made


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    text = JSONEncoder(sort_keys=True, indent=2).encode(build().build())
    out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
