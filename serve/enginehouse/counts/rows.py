"""What is counted: the kinds of rows, what each number of a row is, and how rows of several processes are added.

The key of a row is its kind and then its labels, all text:

    requests  model version            what became of requests, in the process where they came in
    latency   model version            successful ones by seconds: up to each of `BOUNDS_NS`, and more
    refused   model version error      failed ones by the class of their error
    batches   model version pool rows  calls of engines by their rows, in the process of the engine
    loads     model version pool       how often it was loaded and unloaded there
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Literal, TypeAlias

#: Numbers of a row.
WIDTH = 16
NOTHING: Sequence[int] = (0,) * WIDTH

Key: TypeAlias = tuple[str, ...]
Rows: TypeAlias = Mapping[Key, Sequence[int]]
#: Why a request failed, in Triton's words: no room or no time; the client has gone; engines failed; the rest.
Reason: TypeAlias = Literal["REJECTED", "CANCELED", "BACKEND", "OTHER"]

#: Bounds of the latency histogram in nanoseconds.
BOUNDS_NS = tuple(
    round(seconds * 1e9)
    for seconds in (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
)


class Requests(IntEnum):
    """A row of `requests`; durations in nanoseconds, summed over requests."""

    SUCCESS = 0
    SUCCESS_NS = 1
    FAIL_NS = 2
    REJECTED = 3
    CANCELED = 4
    BACKEND = 5
    OTHER = 6
    #: Rows of successful ones.
    ROWS = 7
    QUEUE_NS = 8
    #: Decoding, the engine, encoding.
    INPUT_NS = 9
    INFER_NS = 10
    OUTPUT_NS = 11
    #: Milliseconds since the epoch; of several rows the latest.
    LAST_MS = 12
    #: Under way now: nothing of a process that has ended.
    UNDER_WAY = 13
    #: Attempts beyond the first.
    FAILOVERS = 14


class Batches(IntEnum):
    """A row of `batches`; durations in nanoseconds, summed over calls."""

    COUNT = 0
    INPUT_NS = 1
    INFER_NS = 2
    OUTPUT_NS = 3


class Loads(IntEnum):
    """A row of `loads`; seconds of loading in nanoseconds."""

    LOADED = 0
    LOAD_NS = 1
    FAILED = 2
    UNLOADED = 3


def ended(rows: Rows) -> dict[Key, list[int]]:
    """The rows of a process that has ended."""
    left = {key: list(values) for key, values in rows.items()}
    for key, values in left.items():
        if key[0] == "requests":
            values[Requests.UNDER_WAY] = 0
    return left


def total(several: Iterable[Rows]) -> dict[Key, list[int]]:
    """The sum of the rows of different processes."""
    summed: dict[Key, list[int]] = {}
    for rows in several:
        for key, values in rows.items():
            before = summed.get(key)
            if before is None:
                summed[key] = list(values)
                continue
            latest = max(before[Requests.LAST_MS], values[Requests.LAST_MS])
            for place, value in enumerate(values):
                before[place] += value
            if key[0] == "requests":
                before[Requests.LAST_MS] = latest
    return summed
