"""What waits in a waiting room: calls, in order of their deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from enginehouse.contract.tensors import Tensors


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """A call or slice of one: requests with rows of one shape, `rows` in all; times are `time.monotonic()`.

    Items of equal `shape` may share a batch; those that have an `edge` are padded to the longest of theirs. One that
    `yields` is of the last priority.
    """

    requests: Sequence[Tensors]
    rows: int
    arrived: float
    deadline: float
    shape: Hashable = ()
    edge: int = 0
    yields: bool = False


@dataclass(slots=True, eq=False)
class Waiting:
    """An item in line, and what its caller awaits."""

    item: Item
    #: Set when it is let in: to the rows of its piece, or to None where it may have all.
    admitted: asyncio.Future[int | None] = field(repr=False)


#: (deadline, number of arrival, item), sorted: at equal deadlines the order of arrival.
Line: TypeAlias = list[tuple[float, int, Waiting]]


def still(line: Line, now: float) -> Line:
    """Those that wait as ever: not let in, not given up, and not late."""
    return [entry for entry in line if not entry[-1].admitted.done() and entry[0] > now]


def expire(admitted: asyncio.Future[int | None]) -> None:
    """The deadline has passed."""
    if not admitted.done():
        admitted.set_exception(TimeoutError())


def first(group: list[Waiting], max_rows: int) -> list[Waiting]:
    """The first of `group`, and those after it up to `max_rows` rows; none overtakes one that is too large to fit."""
    rows = 0
    for count, waiting in enumerate(group):
        rows += waiting.item.rows
        if count and rows > max_rows:
            return group[:count]
    return group
