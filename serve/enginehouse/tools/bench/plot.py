"""The plot of the closed loops: throughput and p99 against connections, with the in-process limit as a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from enginehouse.contract.errors import ConfigError
from enginehouse.tools.bench.figure import Figure
from enginehouse.tools.bench.report import Context
from enginehouse.tools.bench.verdict import judge


def check(path: Path) -> None:
    """Raises ConfigError when `plot` could not write to `path`, before anything is measured."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"--plot: {error}; install enginehouse[bench]") from None
    if path.suffix not in (".svg", ".png"):
        raise ConfigError(f"--plot {path}: the name has to end in .svg or .png")


def plot(path: Path, figures: Sequence[Figure], context: Context) -> None:
    """Write the plot to `path` (.svg or .png); INVALID figures are hollow."""
    from matplotlib.figure import Figure as Canvas

    loops = sorted((f for f in figures if f.scenario == "closed-loop"), key=lambda f: f.connections)
    canvas = Canvas(figsize=(7, 6), layout="constrained")
    above, below = canvas.subplots(2, 1, sharex=True)
    connections = [figure.connections for figure in loops]
    filled = [judge(figure, limit=context.limit).valid for figure in loops]
    for axes, label, values in (
        (above, "rows/s", [figure.rows_per_s for figure in loops]),
        (below, "p99, ms", [figure.latency.p99 for figure in loops]),
    ):
        axes.plot(connections, values, color="tab:blue", zorder=1)
        colours = ["tab:blue" if valid else "white" for valid in filled]
        axes.scatter(connections, values, c=colours, edgecolors="tab:blue", zorder=2)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    above.axhline(context.limit.rows_per_s, color="tab:red", linestyle="--", label="in-process limit")
    # Of a small model the limit is hundreds of times what any server reaches.
    above.set_yscale("log")
    above.legend()
    below.set_ylim(bottom=0)
    above.set_title(context.title, fontsize=9, loc="left")
    below.set_xscale("log", base=2)
    below.set_xticks(connections, [str(number) for number in connections])
    below.set_xlabel("connections" if all(filled) else "connections (hollow: INVALID)")
    canvas.savefig(path)
