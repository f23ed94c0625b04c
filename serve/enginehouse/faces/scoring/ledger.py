"""What of a job is done: `OUTPUT/_job/`, so that the same command goes on where another one stopped.

    _job/job.json             model, options and the plan of columns; written once
    _job/listings/N.jsonl     the units, in the order of their numbers; one listing for every time that files were added
    _job/units/UNIT.json      one line for each finished unit, written after its results are published

A unit is done when its line is there and its results are what the line says. Both are published under names that the
unit, the model and the options make, so that a unit that is scored twice has results once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from enginehouse.contract.errors import ConfigError
from enginehouse.faces.scoring import units
from enginehouse.faces.scoring.results.rejected import FOLDER as REJECTED
from enginehouse.faces.scoring.sources import File
from enginehouse.faces.scoring.storage import Folder, digest
from enginehouse.faces.scoring.units import Unit

JOB, LISTINGS, LINES = "_job/job.json", "_job/listings", "_job/units"


@dataclass(frozen=True, slots=True)
class Line:
    """A finished unit: how many rows, where the results are and what they are, who answered and what took how long."""

    unit: str
    rows: int
    written: int
    rejected: int
    kinds: Mapping[str, int]
    output: str
    size: int
    digest: str
    rejected_digest: str
    backends: Mapping[str, int]
    seconds: Mapping[str, float]
    pool: str = ""
    ended: float = 0.0
    calls: int = 0
    busy_s: float = 0.0

    @property
    def rejected_file(self) -> str:
        """Where its rejected rows are, below OUTPUT."""
        return f"{REJECTED}/{self.unit}.jsonl"


@dataclass(slots=True)
class Ledger:
    """The ledger of one job in one folder."""

    folder: Folder
    #: What has to be the same for the job to go on, by what messages call it.
    terms: Mapping[str, Any] = field(default_factory=dict)

    def found(self) -> dict[str, Any] | None:
        """The job that is in the folder, None where there is none."""
        text = self.folder.read(JOB)
        if text is None:
            return None
        try:
            document: dict[str, Any] = json.loads(text)
        except ValueError:
            raise ConfigError(f"{self.folder.path(JOB)} is damaged; --restart scores anew beside it") from None
        return document

    def begin(self, document: Mapping[str, Any]) -> bool:
        """Keep what the job is; False if another one has begun here meanwhile."""
        return self.folder.create(JOB, json.dumps(document, indent=1).encode())

    def listed(self) -> list[Unit]:
        """The units that were listed so far, in order."""
        texts = self.folder.read_all(LISTINGS)
        return [unit for name in sorted(texts) for unit in units.read(texts[name])]

    def add(self, more: Sequence[Unit]) -> None:
        """Keep a listing of further units. Raises ConfigError if another driver does so now."""
        name = f"{LISTINGS}/{more[0].number:06d}.jsonl"
        if not self.folder.create(name, units.written(more)):
            raise ConfigError(f"{self.folder.url}: another command is listing the same job; start this one again")

    def lines(self) -> dict[str, Line]:
        """The lines of finished units by the names of units. What was not finished to the last byte is left out."""
        found = map(_line, self.folder.read_all(LINES).values())
        return {line.unit: line for line in found if line is not None}

    def verified(self, lines: Mapping[str, Line]) -> tuple[dict[str, Line], list[Line]]:
        """The lines whose results are what they say, and the others.

        Local files are read for that; behind a URL their sizes have to be right.
        """
        sizes, rejected = self.folder.sizes(), self.folder.sizes(REJECTED)

        def is_right(line: Line) -> bool:
            if sizes.get(line.output) != line.size:
                return False
            if line.rejected and line.rejected_file.rsplit("/", 1)[-1] not in rejected:
                return False
            if not self.folder.is_local:
                return True
            bad = self.folder.read(line.rejected_file) if line.rejected else b""
            return digest(self.folder.read(line.output) or b"") == line.digest and (
                not line.rejected or digest(bad or b"") == line.rejected_digest
            )

        with ThreadPoolExecutor(4) as threads:
            right = dict(zip(lines, threads.map(is_right, lines.values()), strict=True))
        return {name: line for name, line in lines.items() if right[name]}, [
            line for name, line in lines.items() if not right[name]
        ]

    def discard(self, line: Line) -> None:
        """Remove a line, and then what it is about."""
        for each in (f"{LINES}/{line.unit}.json", line.output, line.rejected_file):
            self.folder.remove(each)

    def line(self, unit: str) -> Line | None:
        """The line of a unit, None while there is none."""
        text = self.folder.read(f"{LINES}/{unit}.json")
        return None if text is None else _line(text)

    def publish(self, line: Line) -> Line:
        """Keep that a unit is finished. If a line is there already, that one counts and is returned."""
        if self.folder.create(f"{LINES}/{line.unit}.json", json.dumps(asdict(line)).encode()):
            return line
        return self.line(line.unit) or line


def _line(text: bytes) -> Line | None:
    try:
        return Line(**json.loads(text))
    except (ValueError, TypeError):
        return None


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs of two jobs' terms, in words."""
    told = []
    for name in [*before, *(name for name in now if name not in before)]:
        old, new = before.get(name), now.get(name)
        if old != new:
            told.append(f"{name} was {json.dumps(old)} and is {json.dumps(new)}")
    return told


def differing(known: Sequence[Unit], files: Sequence[File]) -> tuple[list[str], list[File]]:
    """Files of units that changed or are gone, in words; and the files that are new."""
    now = {file.name: file for file in files}
    before = {file.name: file for unit in known for file in unit.files}
    told = []
    for name, file in before.items():
        if name not in now:
            told.append(f"{name} is gone")
        elif now[name].identity != file.identity:
            told.append(f"{name} is another file now ({_difference(file, now[name])})")
    return told, [file for name, file in now.items() if name not in before]


def _difference(before: File, now: File) -> str:
    if before.size != now.size:
        return f"{before.size} bytes before, {now.size} now"
    return f"{before.stamp} before, {now.stamp} now"
