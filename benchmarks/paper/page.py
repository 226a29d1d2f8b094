"""Fills the tables of docs/evidence.md from result files, and draws its pictures.

    python -m benchmarks.paper.page

The text between ``<!-- NAME -->`` and ``<!-- /NAME -->`` is replaced by the picture and the table
of that name, if there are results; everything else is left unchanged. ``--print`` shows the tables
and changes nothing.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.paper import pictures
from benchmarks.paper.results import load
from benchmarks.paper.tables import TABLES, Results

#: Alternative text of the picture beside a table.
ALT = {
    "figure3": "Perplexity by position, to ten times the model's context",
    "square": "Perplexity by position, sinks at cache positions and at true ones",
    "square-million": "The same over a million tokens",
    "square-gemma": "The same of Gemma 3 270M, to three times its context",
    "square-gemma-million": "The same of Gemma 3 270M over a million tokens",
    "streameval": "Right answers by distance",
    "figure10": "Time per token and memory against cache size",
    "figure10-gpu": "The same on a GPU",
}

FOLDERS = [Path("benchmarks/results") / name for name in ("cpu", "h100", "h200")]


def filled(text: str, results: Results, drawn: Sequence[str] = ()) -> str:
    """The page with its tables.

    Args:
        text: of the page.
        results: by name.
        drawn: file names of the existing pictures.

    Raises:
        SystemExit: a marker names no table, or has no end.
    """
    for name in re.findall(r"<!-- ([a-z0-9-]+) -->", text):
        if name not in TABLES:
            continue  # another section's own
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if end not in text:
            raise SystemExit(f"the page has {begin} and no {end}")
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        picture = f"evidence-{name}.png"
        shown = f"![{ALT[name]}]({picture})\n\n" if picture in drawn else ""
        text = f"{before}{begin}\n{shown}{TABLES[name](results)}\n{end}{after}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.paper.page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--results", nargs="+", type=Path, default=FOLDERS, help="folders")
    parser.add_argument("--page", type=Path, default=Path("docs/evidence.md"))
    parser.add_argument("--print", action="store_true", help="print the tables, write nothing")
    args = parser.parse_args()
    results = load(args.results)
    if args.print:
        for name, make in TABLES.items():
            print(f"\n{name}\n\n{make(results)}")
        return
    drawn = pictures.draw_all(args.results, args.page.parent)
    args.page.write_text(filled(args.page.read_text(), results, [path.name for path in drawn]))
    print(args.page, *drawn)


if __name__ == "__main__":
    main()
