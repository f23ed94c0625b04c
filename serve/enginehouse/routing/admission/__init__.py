"""Admission: limits on the requests in flight in one process, and on their bytes; beyond them requests are refused."""

from __future__ import annotations

from collections import Counter

from enginehouse.contract.config import LAST, USUAL
from enginehouse.contract.errors import Overloaded

#: A model may have at most this many times as many requests in flight as places are free: alone 4 / 5 of the limit,
#: several models equal shares (Choudhury and Hahne, "Dynamic queue length thresholds", 1998). The factor is for the
#: usual priority, and 16 for the first.
SHARE = 4.0
#: Requests of the last priority are counted apart, against this share of the limits: they take no place of the others.
LAST_SHARE = 0.25


class Admission:
    """The limits of one process, and what counts against them now; `by_model` counts requests by model key or name.

    `last` are those of requests of the last priority, and what counts against those.
    """

    def __init__(self, max_requests: int, max_bytes: int, has_last: bool = True) -> None:
        self.max_requests = max_requests
        self.max_bytes = max_bytes
        self.last = self
        if has_last:
            self.last = Admission(max(1, int(max_requests * LAST_SHARE)), int(max_bytes * LAST_SHARE), False)
        self.requests = 0
        self.bytes = 0
        self.by_model: Counter[str] = Counter()


class Admitted:
    """One request in flight: `with Admitted(admission, model, priority) as request: request.take(size)`.

    Entering and `take` raise Overloaded beyond the limits. A request that is alone may be of any size (HTTP limits
    bodies itself).
    """

    __slots__ = ("_admission", "_bytes", "_model", "_priority")

    def __init__(self, admission: Admission, model: str = "", priority: int = USUAL) -> None:
        self._admission = admission.last if priority == LAST else admission
        self._model = model
        self._priority = priority
        self._bytes = 0

    def __enter__(self) -> Admitted:
        admission, model = self._admission, self._model
        free = admission.max_requests - admission.requests
        if free <= 0:
            raise Overloaded(f"{admission.requests} requests are under way, which is the limit")
        under_way = admission.by_model[model]
        if under_way and under_way >= free * SHARE ** ((LAST - self._priority) / (LAST - USUAL)):
            raise Overloaded(
                f"{under_way} requests for {model!r} are under way, which is its share with {free} left for all"
            )
        admission.requests += 1
        admission.by_model[model] = under_way + 1
        return self

    def take(self, size: int) -> None:
        """Count `size` more bytes until the request ends."""
        admission = self._admission
        if admission.requests > 1 and admission.bytes + size > admission.max_bytes:
            raise Overloaded(f"requests of {admission.bytes >> 20} MiB are under way")
        self._bytes += size
        admission.bytes += size

    def __exit__(self, *_: object) -> None:
        admission = self._admission
        admission.requests -= 1
        admission.bytes -= self._bytes
        left = admission.by_model[self._model] - 1
        if left:
            admission.by_model[self._model] = left
        else:
            del admission.by_model[self._model]
