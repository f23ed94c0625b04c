"""Rows that were not scored: `OUTPUT/_rejected/UNIT.jsonl`, one line each with id, place, kind and reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from enginehouse.faces.scoring.results.plain import plain
from enginehouse.faces.scoring.rows.columns import Bad

#: Where they are, below OUTPUT. Readers of folders of results leave out names like this.
FOLDER = "_rejected"


@dataclass(frozen=True, slots=True)
class Rejected:
    """One row: what it is called (None if that could not be read), its file, its number there, and why."""

    id: Any
    file: str
    row: int
    bad: Bad


def written(rows: Sequence[Rejected]) -> bytes:
    """The file of a unit's rejected rows."""
    lines = [
        {"id": plain(each.id), "file": each.file, "row": each.row, "kind": each.bad.kind, "reason": each.bad.reason}
        for each in sorted(rows, key=lambda each: (each.file, each.row))
    ]
    return b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)


def kinds(rows: Sequence[Rejected]) -> dict[str, int]:
    """How many of each kind."""
    return dict(Counter(each.bad.kind for each in rows))
