"""What was found, as one JSON document and one page of tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gpu.lab import NOT_RUN, Row
from benchmarks.gpu.runner import Outcome


def page(facts: Mapping[str, Any], outcomes: Sequence[Outcome]) -> str:
    """Markdown: what was run where and how it ended, then a table for each part that found something."""
    lines = [f"# {facts['name']}", ""]
    if facts["dry"]:
        lines += [
            f"**Dry run, nothing here was measured on a GPU: {facts['dry']}.** Every part ran on the CPU in small "
            "sizes, to show that the script works; the figures mean nothing.",
            "",
        ]
    lines += [f"{key}: {value}  " for key, value in facts.items() if key not in ("name", "dry")]
    summary = [
        {"part": one.part, "shows": one.title, "outcome": one.outcome, "why": one.reason, "s": one.seconds}
        for one in outcomes
    ]
    lines += ["", *table(summary)]
    for one in outcomes:
        if one.rows:
            lines += ["", f"## {one.part}: {one.title}", "", *table(one.rows)]
    return "\n".join(lines) + "\n"


def table(rows: Sequence[Row]) -> list[str]:
    """`rows` as a Markdown table with all their columns in the order they came; empty where a row has no value."""
    columns = list(dict.fromkeys(name for row in rows for name in row if name != NOT_RUN))
    if any(NOT_RUN in row for row in rows):
        columns.append(NOT_RUN)
    lines = [columns, ["---"] * len(columns), *([_shown(row.get(name, "")) for name in columns] for row in rows)]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _shown(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return " ".join(str(value).replace("|", "/").split())
    if isinstance(value, int) or value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"
