"""How a run is shown: a table, one line of JSON for each figure, and a plot where matplotlib is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

import orjson
from rich import box
from rich.table import Table

from benchmarks.replay.figures import Figure, beside, verdict
from benchmarks.replay.router import NAME


def table(figures: Sequence[Figure], title: str) -> Table:
    """A row for each figure, by trace."""
    shown = Table(title=title, title_justify="left", box=box.SIMPLE)
    shown.add_column("trace")
    shown.add_column("policy")
    for name in ("violations %", "late", "refused", "expired", "lost", "in time/s", "cents/1000", "p50 ms", "p99 ms"):
        shown.add_column(name, justify="right")
    shown.add_column(f"{NAME} has violations, is")
    for trace, group in groupby(figures, key=lambda figure: figure.trace):
        known = list(group)
        ours = next(figure for figure in known if figure.policy == NAME)
        for one in known:
            shown.add_row(
                trace if one is ours else "",
                one.policy,
                *(f"{share * 100:.2f}" for share in (one.violations, one.late, one.refused, one.expired, one.lost)),
                f"{one.goodput:,.0f}",
                f"{one.cents:.3f}",
                f"{one.p50_ms:,.0f}",
                f"{one.p99_ms:,.0f}",
                "" if one is ours else beside(ours, one),
                style="bold" if one is ours else None,
                end_section=one is known[-1],
            )
    return shown


def verdicts(figures: Sequence[Figure]) -> list[str]:
    """A line for each trace: whether ours wins, and if not, what holds beside whom."""
    return [f"{trace}: {verdict(list(group))}" for trace, group in groupby(figures, key=lambda figure: figure.trace)]


def write(path: Path, figures: Sequence[Figure], run: Mapping[str, float]) -> None:
    """One line of JSON for each figure, with the parameters of the run."""
    lines = (orjson.dumps(asdict(figure) | {"run": run}, option=orjson.OPT_APPEND_NEWLINE) for figure in figures)
    path.write_bytes(b"".join(lines))


def plot(path: Path, figures: Sequence[Figure], title: str) -> bool:
    """Violations and cost by trace and policy, as .svg; False when matplotlib is not installed."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        return False
    traces = list(dict.fromkeys(figure.trace for figure in figures))
    policies = list(dict.fromkeys(figure.policy for figure in figures))
    # The same figures give the same file.
    with mpl.rc_context({"svg.hashsalt": title}):
        canvas = Canvas(figsize=(7, 6), layout="constrained")
        above, below = canvas.subplots(2, 1, sharex=True)
        for place, policy in enumerate(policies):
            mine = [figure for figure in figures if figure.policy == policy]
            at = [number + (place - (len(policies) - 1) / 2) * 0.2 for number in range(len(traces))]
            above.bar(at, [figure.violations * 100 for figure in mine], 0.18, label=policy)
            below.bar(at, [figure.cents for figure in mine], 0.18)
        above.set_ylabel("SLO violations, %")
        below.set_ylabel("US cents for 1000 answers in time")
        for axes in (above, below):
            axes.grid(axis="y", alpha=0.3)
            axes.set_axisbelow(True)
        # Room for the legend.
        above.margins(y=0.15)
        above.legend(ncols=len(policies), fontsize=8)
        above.set_title(title, fontsize=9, loc="left")
        below.set_xticks(range(len(traces)), traces)
        canvas.savefig(path, metadata={"Date": None})
    return True
