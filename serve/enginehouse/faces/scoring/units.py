"""Files -> units: the pieces of a job that are handed out, each done once and known by the same id for ever."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from enginehouse.faces.scoring import readers
from enginehouse.faces.scoring.readers import Limits, Part
from enginehouse.faces.scoring.sources import File

#: Files whose parts are looked up at once: behind a URL each is a round trip or more.
_AT_ONCE = 8
#: Encoded pictures of a unit, and their bytes: pixels take ten times as many and more.
_PICTURES, PICTURE_BYTES = 256, 8 << 20


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows of a file, or several files of one row each. `number` is its place in the job.

    `share` of its rows are scored, the same ones every time.
    """

    number: int
    files: tuple[File, ...]
    part: Part
    share: float = 1.0

    @property
    def file(self) -> File:
        """Its only file, or the first."""
        return self.files[0]

    def place(self, number: int) -> tuple[File, int]:
        """The file that the row with this number is in, and which row of it."""
        return (self.file, number) if len(self.files) == 1 else (self.files[number], 0)

    @property
    def id(self) -> str:
        """The same for the same rows of the same file, whoever lists them."""
        files = "|".join(file.identity for file in self.files)
        where = f"{files}|{self.part.first}|{self.part.rows}|{self.share}"
        return hashlib.sha256(where.encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """Names of files in the order of the rows."""
        return f"{self.number:06d}-{self.id}"

    def chosen(self) -> np.ndarray | None:
        """Which of its rows are scored; None for all."""
        if self.share >= 1:
            return None
        draw = np.random.Generator(np.random.PCG64(int(self.id, 16)))
        return np.asarray(draw.random(self.part.rows) < self.share)

    @property
    def rows(self) -> int:
        """Rows that are scored or rejected."""
        chosen = self.chosen()
        return self.part.rows if chosen is None else int(chosen.sum())

    def first(self, rows: int) -> Unit:
        """Its first so many rows, to look at."""
        count = min(rows, self.part.rows)
        return replace(self, files=self.files[:count], part=replace(self.part, rows=count))

    def document(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Unit:
        """The inverse of `document`."""
        files = tuple(File(**file) for file in document["files"])
        return cls(document["number"], files, Part(**document["part"]), document["share"])


def cut(files: Sequence[File], limits: Limits, first: int, limit: int | None = None, share: float = 1.0) -> list[Unit]:
    """The units of `files`, numbered from `first`; with `limit`, of the first so many rows."""
    if files and files[0].format == "images":
        each = list(_together(files))
    else:
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            found = threads.map(lambda file: readers.of(file.format).parts(file, limits), files)
            each = [((file,), part) for file, parts in zip(files, found, strict=True) for part in parts if part.rows]
    units: list[Unit] = []
    left = limit
    for own, part in each:
        if left is not None:
            if left <= 0:
                break
            part = Part(part.first, min(part.rows, left), part.at)
            own, left = own[: part.rows], left - part.rows
        units.append(Unit(first + len(units), own, part, share))
    return units


def _together(files: Sequence[File]) -> Iterator[tuple[tuple[File, ...], Part]]:
    """Files of one row each, a unit's worth at a time."""
    own: list[File] = []
    for file in files:
        if own and (len(own) >= _PICTURES or sum(each.size for each in own) + file.size > PICTURE_BYTES):
            yield tuple(own), Part(0, len(own))
            own = []
        own.append(file)
    if own:
        yield tuple(own), Part(0, len(own))


def written(units: Sequence[Unit]) -> bytes:
    """A listing as it is kept: one line a unit."""
    return b"".join(json.dumps(unit.document()).encode() + b"\n" for unit in units)


def read(listing: bytes) -> Iterator[Unit]:
    """The inverse of `written`."""
    for line in listing.splitlines():
        yield Unit.parse(json.loads(line))
