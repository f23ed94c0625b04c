"""When the requests of an open loop are due: at random as in MLPerf's server scenario, or as a trace says.

And the highest rate that holds, searched by doubling and bisection.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from enginehouse.contract.errors import InvalidInput

_FORM = 'a trace is CSV with the columns t (seconds) and perhaps rows, or JSON lines such as {"t": 0.5, "rows": 1}'


class _Arrival(BaseModel):
    t: FiniteFloat
    rows: int = Field(default=1, ge=1)


@dataclass(frozen=True, slots=True)
class Trace:
    """Seconds from the start, ascending, and rows of each request."""

    due_s: tuple[float, ...]
    rows: tuple[int, ...]

    @property
    def rate(self) -> float:
        """Requests per second over its whole length."""
        return len(self.due_s) / self.due_s[-1] if self.due_s[-1] > 0 else float("inf")


def poisson(rate: float, seconds: float, seed: int = 0) -> tuple[float, ...]:
    """Arrivals of a Poisson process of `rate` requests per second within `seconds` seconds; at least one."""
    generator = np.random.default_rng(seed)
    due = np.cumsum(generator.exponential(1 / rate, int(rate * seconds * 1.5) + 20))
    within = due[due < seconds]
    return tuple(within.tolist()) or (0.0,)


def read_trace(path: Path) -> Trace:
    """A CSV file with a column `t` (seconds, any origin) and perhaps `rows`, or the same as JSON lines.

    Raises InvalidInput naming the line at fault.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: {error}; {_FORM}") from None
    as_json = bool(lines) and lines[0].lstrip().startswith("{")
    columns = [] if as_json else next(csv.reader(lines[:1]), [])
    found = []
    for number, line in enumerate(lines if as_json else lines[1:], 1 if as_json else 2):
        try:
            if line.strip():
                found.append(_Arrival.model_validate(orjson.loads(line) if as_json else _cells(columns, line)))
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(str(part) for part in first["loc"]) or "the line"
            raise InvalidInput(f"{path}, line {number}: {at}: {first['msg']}; {_FORM}") from None
        except orjson.JSONDecodeError as error:
            raise InvalidInput(f"{path}, line {number}: {error}; {_FORM}") from None
    if not found:
        raise InvalidInput(f"{path} has no arrivals; {_FORM}")
    found.sort(key=lambda arrival: arrival.t)
    return Trace(tuple(arrival.t - found[0].t for arrival in found), tuple(arrival.rows for arrival in found))


def highest_rate(
    holds: Callable[[float], bool], start: float, lowest: float = 0.0, precision: float = 0.05, tries: int = 16
) -> float:
    """The highest rate found for which `holds`, at most `precision` (a share) below one for which it does not.

    Doubled (or halved) from `start` until that is so on one side only, then bisected. 0 when no rate from `lowest` on
    held within `tries` calls; when none failed, the highest tried.
    """
    low, high = 0.0, float("inf")
    rate = max(start, lowest)
    for _ in range(tries):
        if holds(rate):
            low = rate
        else:
            high = rate
        if high <= max(low * (1 + precision), lowest):
            break
        rate = (low + high) / 2 if low and high < float("inf") else (rate * 2 if low else max(rate / 2, lowest))
    return low


def _cells(columns: list[str], line: str) -> dict[str, str]:
    """What a line of CSV says; empty cells say nothing."""
    return {name: cell for name, cell in zip(columns, next(csv.reader([line])), strict=False) if cell}
