"""A result of ``benchmarks.serving`` as a picture and as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(result: dict[str, Any], path: Path) -> None:
    """The rounds of each side, a panel for each comparison."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = result["groups"]
    figure, panels = pyplot.subplots(
        1, len(groups), figsize=(1.5 + 3.3 * len(groups), 4.5), squeeze=False
    )
    for axes, group in zip(panels[0], groups, strict=True):
        sides = group["sides"]
        axes.boxplot([s["rounds_ms"] for s in sides.values()], whis=(0, 100), widths=0.5)
        axes.set_xticks(range(1, len(sides) + 1), [n.replace(" ", "\n", 1) for n in sides])
        axes.set_title(f"{group['label']}\nratio {group['ratio']:.3f}", fontsize=10)
    panels[0][0].set_ylabel(f"{result['what']} (ms)")
    figure.suptitle(
        f"{result['shape']}, {result['layers']} layers, {result['dtype']}: "
        f"S {result['sink_tokens']}, W {result['window_tokens']}"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def show(result: dict[str, Any]) -> None:
    """The result as tables."""
    print(f"{result['what']}, {result['shape']}, {result['layers']} layers, {result['dtype']}")
    print(f"{'':28}{'side':24}{'median':>10}{'quartiles':>20}{'tokens/s':>10}{'ratio':>8}")
    for group in result["groups"]:
        for i, (name, s) in enumerate(group["sides"].items()):
            spread = f"{s['quartile1_ms']:.3f}-{s['quartile3_ms']:.3f}"
            print(
                f"{group['label'] if not i else '':28}{name:24}{s['median_ms']:7.3f} ms"
                f"{spread:>20}{s['tokens_per_second']:10.1f}"
                + (f"{group['ratio']:8.3f}" if not i else "")
            )
    for row in result.get("streams", []):
        print(
            f"{row['kv_gib']} GiB of KV, streams of {row['context']:,} tokens: {row['full']} with "
            f"full attention, {row['sink']} under the policy"
        )
