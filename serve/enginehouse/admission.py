"""Admission: how many requests, and bytes of them, a process takes on before it refuses more."""

from __future__ import annotations

from enginehouse.errors import Overloaded


class Admission:
    """The limits of one process, and what counts against them now."""

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self.max_requests = max_requests
        self.max_bytes = max_bytes
        self.requests = 0
        self.bytes = 0


class Admitted:
    """One request that is under way: `with Admitted(admission) as request: request.take(size)`.

    Entering and `take` raise Overloaded at the limits. One request alone is let in however large it is: the limit on
    bodies is its limit.
    """

    __slots__ = ("_admission", "_bytes")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._bytes = 0

    def __enter__(self) -> Admitted:
        admission = self._admission
        if admission.requests >= admission.max_requests:
            raise Overloaded(f"{admission.requests} requests are under way, which is the limit; try again later")
        admission.requests += 1
        return self

    def take(self, size: int) -> None:
        """Count `size` more bytes until the request ends."""
        admission = self._admission
        if admission.requests > 1 and admission.bytes + size > admission.max_bytes:
            raise Overloaded(f"requests of {admission.bytes >> 20} MiB are under way; try again later")
        self._bytes += size
        admission.bytes += size

    def __exit__(self, *_: object) -> None:
        self._admission.requests -= 1
        self._admission.bytes -= self._bytes
