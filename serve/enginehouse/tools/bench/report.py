"""How a run is shown: a table for people, and one line of JSON for each figure."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from rich import box
from rich.table import Table

from enginehouse.engines import hardware
from enginehouse.tools.bench.figure import Figure
from enginehouse.tools.bench.limit import Limit
from enginehouse.tools.bench.verdict import Verdict, judge

_PACKAGES = ("enginehouse", "ray", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True, slots=True)
class Context:
    """What was measured, with what: the same for all figures of a run. `samples` is empty for synthetic inputs."""

    model: str
    version: str
    backend: str
    precision: str
    body_bytes: int
    samples: str
    limit: Limit

    @property
    def title(self) -> str:
        inputs = f"inputs from {self.samples}" if self.samples else "SYNTHETIC inputs"
        return f"{self.model}@{self.version} on {self.backend}: {self.limit.artifact} in {self.precision}; {inputs}"

    @property
    def caption(self) -> str:
        limit = self.limit
        return (
            f"in-process limit: {limit.rows_per_s:,.1f} rows/s and {limit.cpu_ms:.3g} CPU ms a row "
            f"(calls of {limit.rows} rows, engines x threads: {limit.engines} x {limit.threads})\n"
            "CPU ms: of all serving processes for an answer, and in brackets without what the engine takes in-process"
        )


def overhead_ms(figure: Figure, limit: Limit) -> float:
    """CPU milliseconds that serving costs for each answer beyond the engine's own."""
    return figure.cpu_ms - figure.rows * limit.cpu_ms


def table(figures: Sequence[Figure], context: Context) -> Table:
    """One row for each figure; what is wrong with the INVALID ones is `faults`."""
    shown = Table(
        title=context.title,
        caption=context.caption,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1),
    )
    shown.add_column("scenario", no_wrap=True)
    for column in ("load", "answers/s", "rows/s", "p50 ms", "p90 ms", "p99 ms", "of limit", "CPU ms"):
        shown.add_column(column, justify="right", no_wrap=True)
    shown.add_column("verdict", no_wrap=True)
    for figure in figures:
        latency = figure.latency
        shown.add_row(
            figure.scenario,
            load_of(figure),
            *(f"{value:,.1f}" for value in (figure.answers_per_s, figure.rows_per_s)),
            *(f"{value:,.1f}" for value in (latency.p50, latency.p90, latency.p99)),
            f"{figure.rows_per_s / context.limit.rows_per_s * 100:.3g}%",
            f"{figure.cpu_ms:.3g} ({overhead_ms(figure, context.limit):.3g})",
            "VALID" if _verdict(figure, context).valid else "INVALID",
        )
    return shown


def faults(figures: Sequence[Figure], context: Context) -> list[str]:
    """A line for each INVALID figure, saying why."""
    verdicts = [(figure, _verdict(figure, context)) for figure in figures]
    return [f"{figure.scenario}, {load_of(figure)}: {verdict}" for figure, verdict in verdicts if not verdict.valid]


def load_of(figure: Figure) -> str:
    """The load in words."""
    return f"{figure.rate:,.1f}/s" if figure.rate is not None else f"{figure.connections} conn."


def append_lines(path: Path, figures: Sequence[Figure], context: Context) -> None:
    """Append a line of JSON for each figure to `path`."""
    facts = _facts(context)
    with path.open("ab") as file:
        for figure in figures:
            file.write(orjson.dumps(_record(figure, context) | facts, option=orjson.OPT_APPEND_NEWLINE))


def _record(figure: Figure, context: Context) -> dict[str, Any]:
    verdict = _verdict(figure, context)
    return {
        **asdict(figure),
        "answers_per_s": figure.answers_per_s,
        "rows_per_s": figure.rows_per_s,
        "share_of_limit": figure.rows_per_s / context.limit.rows_per_s,
        "cpu_ms": figure.cpu_ms,
        "overhead_cpu_ms": overhead_ms(figure, context.limit),
        "verdict": "VALID" if verdict.valid else "INVALID",
        "reasons": verdict.reasons,
    }


def _facts(context: Context) -> dict[str, Any]:
    cpu = hardware.probe_cpu()
    return {
        **asdict(context),
        "synthetic": not context.samples,
        "artifact": context.limit.artifact,
        "host": {"cpu": cpu.model, "cores": cpu.cores, "threads": cpu.threads},
        "versions": _versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _versions() -> Mapping[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _verdict(figure: Figure, context: Context) -> Verdict:
    return judge(figure, limit=context.limit)
