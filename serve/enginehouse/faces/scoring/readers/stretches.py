"""Text of records one after the other, cut into stretches of bytes that begin with a record."""

from __future__ import annotations

from collections.abc import Iterable

from enginehouse.faces.scoring.readers import Limits, Part


def stretches(records: Iterable[tuple[int, bytes]], limits: Limits, growth: int) -> list[Part]:
    """Parts within `limits`; `records` are where each begins and its text, of which memory takes `growth` times."""
    found = []
    start, first, rows, size = 0, 0, 0, 0
    for at, record in records:
        if rows >= limits.rows or (rows and size * growth >= limits.bytes):
            found.append(Part(first, rows, {"start": start}))
            start, first, rows, size = at, first + rows, 0, 0
        elif not rows:
            start = at
        rows += 1
        size += len(record)
    if rows:
        found.append(Part(first, rows, {"start": start}))
    return found
