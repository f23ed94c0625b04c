"""Counts of requests by model version, in the process where they came in."""

from __future__ import annotations

import time
from bisect import bisect_left

from enginehouse.contract.errors import CapacityError, RequestError
from enginehouse.contract.tensors import Timing
from enginehouse.counts.ledger import Ledger
from enginehouse.counts.rows import BOUNDS_NS, Reason, Requests

# Plain numbers: what is looked up for every request takes its time.
(
    _SUCCESS,
    _SUCCESS_NS,
    _FAIL_NS,
    _ROWS,
    _QUEUE_NS,
    _INPUT_NS,
    _INFER_NS,
    _OUTPUT_NS,
    _LAST_MS,
    _UNDER_WAY,
    _FAILOVERS,
) = map(
    int,
    (
        Requests.SUCCESS,
        Requests.SUCCESS_NS,
        Requests.FAIL_NS,
        Requests.ROWS,
        Requests.QUEUE_NS,
        Requests.INPUT_NS,
        Requests.INFER_NS,
        Requests.OUTPUT_NS,
        Requests.LAST_MS,
        Requests.UNDER_WAY,
        Requests.FAILOVERS,
    ),
)


class RequestCounts:
    """Those of one model version. For one thread: the event loop of the router."""

    __slots__ = ("_key", "_latency", "_ledger", "_refused", "_row")

    def __init__(self, ledger: Ledger, model: str, version: str) -> None:
        self._ledger = ledger
        self._key = model, version
        self._row = ledger.row("requests", model, version)
        self._latency = ledger.row("latency", model, version)
        self._refused: dict[str, memoryview] = {}

    def begun(self) -> None:
        """One is under way."""
        self._row[_UNDER_WAY] += 1

    def ended(self) -> None:
        """One that had begun no longer is."""
        self._row[_UNDER_WAY] -= 1

    def succeeded(self, ns: int, input_ns: int, output_ns: int, rows: int, timing: Timing, attempts: int) -> None:
        """One was answered `ns` nanoseconds after its body was there."""
        row = self._row
        row[_SUCCESS] += 1
        row[_SUCCESS_NS] += ns
        row[_ROWS] += rows
        row[_QUEUE_NS] += int(timing.queue_ms * 1e6)
        row[_INPUT_NS] += input_ns
        row[_INFER_NS] += int(timing.compute_ms * 1e6)
        row[_OUTPUT_NS] += output_ns
        row[_LAST_MS] = time.time_ns() // 1_000_000
        if attempts > 1:
            row[_FAILOVERS] += attempts - 1
        self._latency[bisect_left(BOUNDS_NS, ns)] += 1

    def failed(self, kind: type[BaseException], outcome: str, ns: int) -> None:
        """One ended with an error of this class, which telemetry calls `outcome`, after so many nanoseconds."""
        row = self._row
        row[Requests[reason_of(kind, outcome)]] += 1
        row[_FAIL_NS] += ns
        row[_LAST_MS] = time.time_ns() // 1_000_000
        refused = self._refused.get(outcome)
        if refused is None:
            refused = self._refused[outcome] = self._ledger.row("refused", *self._key, outcome)
        refused[0] += 1


def reason_of(kind: type[BaseException], outcome: str) -> Reason:
    """Why a request with this error failed, in Triton's words."""
    if outcome == "cancelled":
        return "CANCELED"
    if issubclass(kind, CapacityError):
        return "REJECTED"
    return "OTHER" if issubclass(kind, RequestError) else "BACKEND"


class Counted:
    """The counts of all model versions of this process. For one thread."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._known: dict[tuple[str, str], RequestCounts] = {}

    def of(self, model: str, version: str) -> RequestCounts:
        """Those of one that is in the catalog."""
        known = self._known.get((model, version))
        if known is None:
            known = self._known[model, version] = RequestCounts(self.ledger, model, version)
        return known
