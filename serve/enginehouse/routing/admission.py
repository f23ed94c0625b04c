"""Admission: how many requests, and bytes of them, a process takes on before it refuses more."""

from __future__ import annotations

from collections import Counter

from enginehouse.contract.errors import Overloaded
from enginehouse.routing.policy import LAST, USUAL

#: What a model may have under way, as a multiple of what is still free: more than 4 / 5 of a process no single one, and
#: of several each as much (Choudhury and Hahne, "Dynamic queue length thresholds", 1998). By priority 16 to 1.
SHARE = 4.0


class Admission:
    """The limits of one process, and what counts against them now."""

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self.max_requests = max_requests
        self.max_bytes = max_bytes
        self.requests = 0
        self.bytes = 0
        self.by_model: Counter[str] = Counter()


class Admitted:
    """One request that is under way: `with Admitted(admission, model, priority) as request: request.take(size)`.

    Entering and `take` raise Overloaded at the limits. One request alone is let in however large it is: the limit on
    bodies is its limit.
    """

    __slots__ = ("_admission", "_bytes", "_model", "_priority")

    def __init__(self, admission: Admission, model: str = "", priority: int = USUAL) -> None:
        self._admission = admission
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
