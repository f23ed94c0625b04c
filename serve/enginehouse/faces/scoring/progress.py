"""How far a job is: a live line on a terminal, a line now and then in a log, or JSON."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter, deque
from typing import Any, Literal, TextIO, TypeAlias

from enginehouse.faces.scoring.ledger import Line

Look: TypeAlias = Literal["live", "lines", "json", "none"]
#: Seconds between two lines in a log, and two on a terminal.
_EVERY_S: dict[Look, float] = {"live": 0.2, "lines": 10.0, "json": 2.0, "none": float("inf")}
#: Seconds by which the rate is told, and units at least.
_LATELY_S, _LEAST = 20.0, 4


class Progress:
    """Counts what is done and shows it. `before` rows were done by earlier runs of the job."""

    def __init__(self, total: int, before: int = 0, look: Look = "none", to: TextIO | None = None) -> None:
        self.total, self.done, self.rejected, self.new = total, before, 0, 0
        self.pools: Counter[str] = Counter()
        self._look, self._to = look, to or sys.stderr
        self._shown = time.monotonic()
        # When how many rows were done: starting scorers says nothing of how long the rest takes.
        self._lately: deque[tuple[float, int]] = deque()

    def add(self, line: Line | None) -> None:
        """A unit is done; None when it is only time that passed."""
        if line is not None:
            self.done += line.rows
            self.new += line.rows
            self.rejected += line.rejected
            self.pools[line.pool] += line.rows
        now = time.monotonic()
        if line is not None:
            self._lately.append((now, self.new))
            while now - self._lately[0][0] > _LATELY_S and len(self._lately) > _LEAST:
                self._lately.popleft()
        if now - self._shown >= _EVERY_S[self._look]:
            self._shown = now
            self._show()

    def end(self) -> None:
        """Clear the live line, or say the last figures."""
        if self._look == "live":
            self._to.write("\r\x1b[K")
            self._to.flush()
        elif self._look == "json":
            self._show()

    def figures(self) -> dict[str, Any]:
        """What is shown, as plain data."""
        rate = self._rate()
        left = (self.total - self.done) / rate if rate else None
        return {
            "rows": self.done,
            "of": self.total,
            "rows_per_s": round(rate, 1),
            "seconds_left": None if left is None else round(left, 1),
            "rejected": self.rejected,
            "pools": dict(self.pools),
        }

    def _rate(self) -> float:
        """Rows a second, lately; 0 until two units are done."""
        if len(self._lately) < 2:
            return 0.0
        (first, before), (last, after) = self._lately[0], self._lately[-1]
        return (after - before) / (last - first) if last > first else 0.0

    def _show(self) -> None:
        figures = self.figures()
        if self._look == "json":
            text = json.dumps(figures) + "\n"
        else:
            text = _told(figures)
            text = f"\r\x1b[K{text}" if self._look == "live" else f"{text}\n"
        self._to.write(text)
        self._to.flush()


def _told(figures: dict[str, Any]) -> str:
    share = 100 * figures["rows"] / max(1, figures["of"])
    told = f"{figures['rows']:,} of {figures['of']:,} rows ({share:.0f} %)"
    if figures["rows_per_s"]:
        told += f", {figures['rows_per_s']:,.0f} rows/s"
    if figures["seconds_left"] is not None:
        told += f", {duration(figures['seconds_left'])} left"
    if figures["rejected"]:
        told += f", {figures['rejected']:,} rejected"
    if len(figures["pools"]) > 1:
        done = sum(figures["pools"].values())
        told += ", " + ", ".join(f"{pool} {100 * rows / done:.0f} %" for pool, rows in figures["pools"].items())
    return told


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
