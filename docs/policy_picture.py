"""Draws docs/policy.png: what a stream keeps, where its tokens stand, what happens to its blocks.

python docs/policy_picture.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

SINK, WINDOW, GONE, EDGE = "#2f6f4f", "#3b6ea8", "#e9e9e9", "#777777"
SINKS, SPAN, BLOCK = 4, 8, 4


def row(axes: Axes, y: float, now: int, note: str) -> None:
    """One line of tokens 0 .. now, with cache positions in those that are kept."""
    for j in range(now + 1):
        kept_window = j > now - SPAN
        kept_sink = j < SINKS
        color = SINK if kept_sink else WINDOW if kept_window else GONE
        axes.add_patch(Rectangle((j, y), 0.92, 0.8, facecolor=color, edgecolor="none"))
        if kept_sink or kept_window:
            position = j if kept_sink else min(now, SINKS + SPAN - 1) - (now - j)
            axes.text(j + 0.46, y + 0.4, position, color="white", ha="center", va="center")
        else:
            axes.text(j + 0.46, y + 0.4, "·", color="#aaaaaa", ha="center", va="center")
    for b in range(0, now + 1, BLOCK):
        width = min(BLOCK, now + 1 - b) - 0.08
        alive = b < SINKS or b + BLOCK > now - SPAN + 1
        axes.add_patch(
            Rectangle(
                (b, y - 0.06),
                width,
                0.92,
                facecolor="none",
                edgecolor=EDGE if alive else "#cccccc",
                linestyle="-" if alive else ":",
            )
        )
    axes.text(-0.4, y + 0.4, f"token {now}", ha="right", va="center", fontsize=10)
    axes.text(now + 1.2, y + 0.4, note, ha="left", va="center", fontsize=9, color="#444444")


def main() -> None:
    figure, axes = pyplot.subplots(figsize=(11, 3.6))
    row(axes, 4.2, 7, "all is kept: ordinary attention")
    row(axes, 2.8, 13, "the window rolls; queries meet the sinks nearer")
    row(axes, 1.4, 21, "whole blocks between return to the pool")
    axes.text(0, 5.35, "sinks: first S tokens, kept", color=SINK, fontsize=10, weight="bold")
    axes.text(10.5, 5.35, "window: last W tokens", color=WINDOW, fontsize=10, weight="bold")
    axes.text(
        19, 5.35, "evicted (dotted: block recycled)", color="#888888", fontsize=10, weight="bold"
    )
    axes.text(
        0,
        0.55,
        "Numbers are positions as the model sees them: they never pass S + W - 1 (here 4 + 8 - 1 = "
        "11), however long the stream.\nNo key is moved: keys keep the angle of their true index, "
        "and only the query is turned back, by the number of evicted tokens, to meet the sinks.",
        fontsize=9,
        va="top",
        color="#333333",
    )
    axes.set_xlim(-3, 33)
    axes.set_ylim(-0.5, 5.9)
    axes.axis("off")
    figure.savefig(Path(__file__).with_name("policy.png"), dpi=140, bbox_inches="tight")


if __name__ == "__main__":
    main()
