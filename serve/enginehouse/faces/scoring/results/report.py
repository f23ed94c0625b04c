"""What a job did: `OUTPUT/_job/report.json`, and `report.html` for people."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from enginehouse.faces.scoring.ledger import Line
from enginehouse.faces.scoring.storage import Folder

RUNS, REPORT, PAGE = "_job/runs", "_job/report.json", "_job/report.html"


@dataclass(frozen=True, slots=True)
class Run:
    """One command that worked on the job: what it did, in how long and what was predicted.

    `came_to_end`: it ended by itself; else it was killed, and what it did is told by the units that are done. By pool:
    how many scorers died, how many were up at most, and the seconds that they were up and starting.
    """

    began: float
    ended: float
    units: int
    rows: int
    deaths: Mapping[str, int] = field(default_factory=dict)
    scorers: Mapping[str, int] = field(default_factory=dict)
    up_s: Mapping[str, float] = field(default_factory=dict)
    starting_s: Mapping[str, float] = field(default_factory=dict)
    forecast_s: float | None = None
    came_to_end: bool = True


@dataclass(frozen=True, slots=True)
class Report:
    """Rows in, out and rejected (by kind), rows by backend and pool, seconds of scorers by what they were spent on.

    `rates`: rows a second of each backend while it computed.
    """

    folder: str
    rows: int
    written: int
    rejected: int
    units: int
    finished: int
    kinds: Mapping[str, int]
    backends: Mapping[str, int]
    rates: Mapping[str, float]
    pools: Mapping[str, Mapping[str, float]]
    seconds: float
    runs: tuple[Run, ...]

    @property
    def is_complete(self) -> bool:
        """Whether every unit is done."""
        return self.finished == self.units


def keep_run(folder: Folder, run: Run) -> None:
    """Remember a command that works on the job, or how it ended in the place of that."""
    folder.put(f"{RUNS}/{int(run.began * 1000)}.json", json.dumps(asdict(run)).encode())


def runs(folder: Folder) -> tuple[Run, ...]:
    """The commands that worked on the job so far."""
    return tuple(Run(**json.loads(text)) for _, text in sorted(folder.read_all(RUNS).items()))


def made(folder: Folder, lines: Mapping[str, Line], rows: int, units: int) -> Report:
    """The report of a job with these finished units."""
    by_run = _by_run(runs(folder), lines.values())
    commands = tuple(command for command, _ in by_run)
    kinds: Counter[str] = Counter()
    backends: Counter[str] = Counter()
    pools: dict[str, Counter[str]] = {}
    for line in lines.values():
        kinds.update(line.kinds)
        backends.update(line.backends)
        own = pools.setdefault(line.pool, Counter())
        own.update({"rows": line.rows, "units": 1, "calls": line.calls, "busy_s": line.busy_s})
        own.update({f"{what}_s": seconds for what, seconds in line.seconds.items()})
    return Report(
        folder=folder.url,
        rows=rows,
        written=sum(line.written for line in lines.values()),
        rejected=sum(line.rejected for line in lines.values()),
        units=units,
        finished=len(lines),
        kinds=dict(sorted(kinds.items(), key=lambda each: (-each[1], each[0]))),
        backends=dict(backends.most_common()),
        rates=_rates([own for _, own in by_run]),
        pools={pool: {name: round(value, 3) for name, value in own.items()} for pool, own in pools.items()},
        seconds=sum(run.ended - run.began for run in commands),
        runs=commands,
    )


def _by_run(commands: Sequence[Run], lines: Collection[Line]) -> list[tuple[Run, list[Line]]]:
    """Each command with the units that were done while it was the last one."""
    found = []
    ends = [command.began for command in commands[1:]] + [math.inf]
    for command, end in zip(commands, ends, strict=True):
        own = [line for line in lines if command.began <= line.ended < end]
        if not command.came_to_end:
            ended = max([command.began, *(line.ended for line in own)])
            command = replace(command, ended=ended, units=len(own), rows=sum(line.rows for line in own))
        found.append((command, own))
    return found


def _rates(by_run: Sequence[Sequence[Line]]) -> dict[str, float]:
    """Rows a second of each backend, between the first unit of it that was read and the last one that was written."""
    rows: Counter[str] = Counter()
    seconds: dict[str, float] = defaultdict(float)
    for own in by_run:
        for backend in {backend for line in own for backend in line.backends}:
            those = [line for line in own if backend in line.backends]
            rows[backend] += sum(line.backends[backend] for line in those)
            first = min(line.ended - sum(line.seconds.values()) for line in those)
            seconds[backend] += max(line.ended for line in those) - first
    return {backend: round(rows[backend] / seconds[backend], 1) for backend in rows if seconds[backend]}


def publish(folder: Folder, report: Report, terms: Mapping[str, Any]) -> None:
    """Write the report into OUTPUT; `terms` are those of the ledger."""
    from enginehouse.faces.scoring.results.page import rendered

    folder.put(REPORT, json.dumps(document(report), indent=1).encode())
    folder.put(PAGE, rendered(report, terms).encode())


def document(report: Report) -> dict[str, Any]:
    """As plain data."""
    return {**asdict(report), "is_complete": report.is_complete}
