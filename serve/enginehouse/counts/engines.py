"""Counts of the calls of an engine, in the process that it is in."""

from __future__ import annotations

import threading

from enginehouse.counts import ledger
from enginehouse.counts.rows import Batches


class BatchCounts:
    """Those of one model version in one pool, by the rows of a call. For the engine's threads."""

    def __init__(self, model: str, version: str, pool: str) -> None:
        self._key = model, version, pool
        self._rows: dict[int, memoryview] = {}
        self._lock = threading.Lock()

    def computed(self, rows: int, most: int, input_s: float, infer_s: float, output_s: float) -> None:
        """So many rows were computed in calls of `most` rows at most; the seconds are shared out among the calls."""
        full, rest = divmod(rows, most) if rows > most else (0, rows)
        with self._lock:
            if full:
                share = full * most / rows
                self._add(most, full, input_s * share, infer_s * share, output_s * share)
            if rest:
                share = rest / rows
                self._add(rest, 1, input_s * share, infer_s * share, output_s * share)

    def _add(self, rows: int, calls: int, input_s: float, infer_s: float, output_s: float) -> None:
        row = self._rows.get(rows)
        if row is None:
            row = self._rows[rows] = ledger.here().row("batches", *self._key, str(rows))
        row[Batches.COUNT] += calls
        row[Batches.INPUT_NS] += int(input_s * 1e9)
        row[Batches.INFER_NS] += int(infer_s * 1e9)
        row[Batches.OUTPUT_NS] += int(output_s * 1e9)
