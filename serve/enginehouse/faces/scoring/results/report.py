"""What a job did: `OUTPUT/_job/report.json`, and `report.html` for people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from enginehouse.faces.scoring.ledger import Line
from enginehouse.faces.scoring.storage import Folder

RUNS, REPORT, PAGE = "_job/runs", "_job/report.json", "_job/report.html"


@dataclass(frozen=True, slots=True)
class Run:
    """One command that worked on the job: what it did, in how long and what was predicted.

    By pool: how many scorers died, how many were up at most, and the seconds that they were up and starting.
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


@dataclass(frozen=True, slots=True)
class Report:
    """Rows in, out and rejected (by kind), rows by backend and pool, seconds of scorers by what they were spent on."""

    folder: str
    rows: int
    written: int
    rejected: int
    units: int
    finished: int
    kinds: Mapping[str, int]
    backends: Mapping[str, int]
    pools: Mapping[str, Mapping[str, float]]
    seconds: float
    runs: tuple[Run, ...]

    @property
    def is_complete(self) -> bool:
        """Whether every unit is done."""
        return self.finished == self.units


def keep_run(folder: Folder, run: Run) -> None:
    """Remember a command that worked on the job."""
    folder.put(f"{RUNS}/{int(run.began * 1000)}.json", json.dumps(asdict(run)).encode())


def runs(folder: Folder) -> tuple[Run, ...]:
    """The commands that worked on the job so far."""
    return tuple(Run(**json.loads(text)) for _, text in sorted(folder.read_all(RUNS).items()))


def made(folder: Folder, lines: Mapping[str, Line], rows: int, units: int) -> Report:
    """The report of a job with these finished units."""
    commands = runs(folder)
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
        pools={pool: {name: round(value, 3) for name, value in own.items()} for pool, own in pools.items()},
        seconds=sum(run.ended - run.began for run in commands),
        runs=commands,
    )


def publish(folder: Folder, report: Report, terms: Mapping[str, Any]) -> None:
    """Write the report into OUTPUT; `terms` are those of the ledger."""
    from enginehouse.faces.scoring.results.page import rendered

    folder.put(REPORT, json.dumps(document(report), indent=1).encode())
    folder.put(PAGE, rendered(report, terms).encode())


def document(report: Report) -> dict[str, Any]:
    """As plain data."""
    return {**asdict(report), "is_complete": report.is_complete}
