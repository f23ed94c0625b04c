"""The latency table: how long `Engine.infer` takes for every (engine, artifact) that runs on this machine.

**Points.** Rows 1, 2, 4 ... and the largest batch, at each of a few sizes of the cost axis. All rows at the axis' `opt`
and all sizes at one row come first, then the others from small to large, as long as the calls that a table needs at
least fit into the budget, judged by the time per row and size of the largest point so far. Points left out are
predicted in proportion (see `LatencyTable`).

**Rounds.** In a round each point gets a window: an uncounted call, then at least 0.05 s and 5 calls; slow calls fill
0.25 s or are a single one. The engines take turns at each point, so that a noisy moment of the machine hits all. The
first round is warm-up.

**Verdict.** A point is settled when the medians of its latest 3 rounds lie within 10 % of one another: the rule of
Triton's perf_analyzer, whose figures these are (`--stability-percentage`, max / min of the recent 3 measurements), as
are the 10 rounds at most (`--max-trials`). Only points that are not settled are measured again, for 20 s at most: where
the machine stays busy, the verdict comes soon. A round does not count in which the engine's threads waited for a CPU
for more than 10 % of the time: under steady load from other processes, rounds agree on two to four times the true time
(observed). A settled point's figures are those of the three rounds: at least 3 calls, and at least 0.15 s of them.
(MLPerf asks for minutes and a thousand queries for each figure; a table has dozens of figures and is made in every
build.) A table with a point that never settled is INVALID, and that point's figures are those of all rounds that count,
or of all if none does. A QUICK table has one round of the smallest and the largest batch at the usual size, and decides
as little as an INVALID one.

**Memory.** At most 4 engines are alive at once, and no more than 256 MiB of artifact files if there are several.
"""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import numpy as np

from enginehouse.contract.bundle import Bundle
from enginehouse.contract.errors import BuildError
from enginehouse.contract.latency import LatencyPoint, LatencyTable, Verdict
from enginehouse.contract.manifest import EngineKind, Manifest
from enginehouse.contract.tensors import Tensors
from enginehouse_build.inputs.extents import sizes
from enginehouse_build.judge.stopwatch import Cell, Stopwatch, Window, where, write_order

Target: TypeAlias = tuple[EngineKind, str]
Rounds: TypeAlias = Sequence[Window]

AGREEING_ROUNDS = 3
MOST_ROUNDS = 10
#: Seconds that the slow calls of one target may take.
BUDGET_S = 60.0
#: Seconds that rounds beyond the first ones may take, of all targets together.
RETRY_S = 20.0
SPREAD = 0.10
WAITED = 0.10
MOST_ENGINES = 4
MOST_BYTES = 256 << 20
#: Why a QUICK table is one.
QUICK = "one round, of the smallest and the largest batch only (--quick)"
#: Calls that a slow point takes: an uncounted one and a counted one, in warm-up and in each round that must agree.
_CALLS = 2 * (1 + AGREEING_ROUNDS)


def measure(
    bundle: Bundle,
    targets: Sequence[Target],
    samples: Tensors,
    threads: int,
    *,
    budget_s: float = BUDGET_S,
    patience_s: float = 300.0,
    quick: bool = False,
) -> tuple[list[LatencyTable], dict[Target, str]]:
    """Latency tables of `targets` (engine kind, artifact name) on `samples`, and why others have none.

    `budget_s` bounds the slow calls of one target; fast calls take less than a second for each point, mostly 0.2 s. A
    target that takes longer than `patience_s` to load, or for one window, is given up. `quick` has QUICK tables made.
    """
    tables: list[LatencyTable] = []
    faults: dict[Target, str] = {}
    cells = ends(bundle.manifest) if quick else grid(bundle.manifest)
    retries_s = RETRY_S
    for group in groups(bundle.manifest, targets):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            order = Path(folder) / "order"
            write_order(order, bundle, samples, threads)
            # All load at once; from then on one works at a time.
            runs = [_Run(stack.enter_context(Stopwatch(*target, order, patience_s)), budget_s) for target in group]
            for run in runs:
                run.load()
            for cell in cells:
                for run in runs:
                    run.warm_up(cell)
            for number in range(1 if quick else MOST_ROUNDS):
                began = time.monotonic()
                if retries_s <= 0 and number >= AGREEING_ROUNDS:
                    break
                for cell in cells:
                    for run in runs:
                        run.measure(cell)
                if number >= AGREEING_ROUNDS:
                    retries_s -= time.monotonic() - began
        for target, run in zip(group, runs, strict=True):
            if run.fault is None:
                tables.append(table(*target, threads, run.rounds, quick=quick))
            else:
                faults[target] = run.fault
    return tables, faults


def groups(manifest: Manifest, targets: Sequence[Target]) -> Iterator[list[Target]]:
    """`targets` in their order, in groups small enough to be in memory together."""
    group: list[Target] = []
    held = 0
    for target in targets:
        needs = sum(file.bytes for file in manifest.artifact(target[1]).files)
        if group and (len(group) == MOST_ENGINES or held + needs > MOST_BYTES):
            yield group
            group, held = [], 0
        group.append(target)
        held += needs
    if group:
        yield group


def grid(manifest: Manifest) -> list[Cell]:
    """What is measured, in the order of its worth: one row of size `opt` first, and nothing that is empty."""
    rows = manifest.batch_buckets()
    if not manifest.axes:
        return [(number, None) for number in rows]
    axis = manifest.axes[0]

    def worth(cell: Cell) -> tuple[bool, bool, int]:
        number, size = cell
        return cell != (1, axis.opt), number != 1 and size != axis.opt, _work(cell)

    return sorted(((number, size) for number in rows for size in sizes(axis) if size), key=worth)


def ends(manifest: Manifest) -> list[Cell]:
    """The smallest and the largest number of rows, at the usual size."""
    size = manifest.axes[0].opt if manifest.axes else None
    return [(number, size) for number in dict.fromkeys((1, manifest.max_batch))]


def table(
    engine: EngineKind, artifact: str, threads: int, measured: Mapping[Cell, Rounds], *, quick: bool = False
) -> LatencyTable:
    """The table of what was measured on this host, with its verdict by the rules above."""
    points = {cell: _point(cell, measured[cell]) for cell in sorted(measured, key=_order)}
    unsettled = [cell for cell in points if not _settled(measured[cell])]
    verdict: Verdict = "QUICK" if quick else "INVALID" if unsettled else "VALID"
    reason = QUICK if quick else ""
    if verdict == "INVALID":
        worst = max(unsettled, key=lambda cell: points[cell].spread)
        reason = f"{len(unsettled)} of {len(points)} points did not settle; at {where(worst)} {_why(measured[worst])}"
    return LatencyTable(
        engine=engine,
        artifact=artifact,
        threads=threads,
        host=platform.node(),
        points=tuple(points.values()),
        verdict=verdict,
        reason=reason,
    )


class _Run:
    """The measuring of one target. A fault ends only this one, and is kept in `fault`."""

    def __init__(self, stopwatch: Stopwatch, budget_s: float) -> None:
        self.fault: str | None = None
        self.rounds: dict[Cell, list[Window]] = {}
        self._stopwatch = stopwatch
        self._budget_s = budget_s
        self._call_s: dict[Cell, float] = {}

    def load(self) -> None:
        try:
            self._stopwatch.wait_until_loaded()
        except BuildError as error:
            self.fault = str(error)

    def warm_up(self, cell: Cell) -> None:
        """Decide whether there is time for this point; if so, run it for the first time."""
        calls = self._call_s
        if self.fault is not None:
            return
        if calls:
            largest = max(calls, key=_work)
            expected = calls[largest] * _work(cell) / _work(largest)
            if _CALLS * (sum(calls.values()) + expected) > self._budget_s:
                return
        if (window := self._window(cell)) is not None:
            calls[cell] = statistics.median(window.seconds)
            self.rounds[cell] = []

    def measure(self, cell: Cell) -> None:
        """One more window, if this point needs it and there is time for it."""
        rounds = self.rounds.get(cell)
        if self.fault is not None or rounds is None or _settled(rounds):
            return
        if (window := self._window(cell)) is not None:
            rounds.append(window)

    def _window(self, cell: Cell) -> Window | None:
        try:
            window = self._stopwatch.window(cell)
        except BuildError as error:
            self.fault = str(error)
            return None
        return window


def _work(cell: Cell) -> int:
    rows, size = cell
    return rows * (size or 1)


def _order(cell: Cell) -> tuple[int, int]:
    rows, size = cell
    return size or 0, rows


def _counting(rounds: Rounds) -> Rounds:
    return [window for window in rounds if window.waited <= WAITED]


def _settled(rounds: Rounds) -> bool:
    latest = _counting(rounds)[-AGREEING_ROUNDS:]
    return len(latest) == AGREEING_ROUNDS and _spread(latest) <= SPREAD


def _spread(rounds: Rounds) -> float:
    medians = [statistics.median(window.seconds) for window in rounds]
    return max(medians) / min(medians) - 1


def _why(rounds: Rounds) -> str:
    """Why these rounds did not settle."""
    counting = _counting(rounds)
    if len(counting) < AGREEING_ROUNDS:
        waited = statistics.median(window.waited for window in rounds)
        return (
            f"only {len(counting)} of {len(rounds)} rounds count: other processes kept the engine's threads waiting "
            f"for a CPU ({waited:.0%} of the time in the median round, {WAITED:.0%} may be)"
        )
    return (
        f"the medians of {len(counting)} rounds lie {_spread(counting):.0%} apart "
        f"({SPREAD:.0%} may lie between the latest {AGREEING_ROUNDS})"
    )


def _point(cell: Cell, rounds: Rounds) -> LatencyPoint:
    counting = _counting(rounds) or rounds
    if _settled(rounds):
        counting = counting[-AGREEING_ROUNDS:]
    seconds = [call for window in counting for call in window.seconds]
    rows, size = cell
    return LatencyPoint(
        rows=rows,
        size=size,
        median_ms=statistics.median(seconds) * 1e3,
        p90_ms=float(np.percentile(seconds, 90)) * 1e3,
        min_ms=min(seconds) * 1e3,
        count=len(seconds),
        spread=_spread(counting),
    )
