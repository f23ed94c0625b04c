"""Suspicion: what the replicas that were lost with a request say of it, and when that is enough to end it.

The first loss makes it suspected. From then on it is sent isolated, and of each further loss counts how it was lost:

    under way                  not in an engine, or nobody knows: says nothing
    isolated in the engine     by a fatal signal: it is at fault, InferenceFailed. Without one, its process may have
                               been killed from outside, or for its memory: at the second time it is at fault
    in the engine, beside what takes long there, such as a load
                               a fatal signal in its own thread is as good as being isolated without one;
                               else it is tried MOST_IN_COMPANY times, then it ends as ReplicaLost, unblamed

What is lost within ONE_EVENT_S after a loss that counted may have been lost for the same reason: it does not count.
"""

from __future__ import annotations

from typing import Any

from enginehouse.contract.errors import EnginehouseError, InferenceFailed, ReplicaLost
from enginehouse.pools.crashes import Death
from enginehouse.transport.router_end import CRASHED, IN_COMPANY, ISOLATED, UNDER_WAY

#: Replicas that are lost within so many seconds may have been lost for one reason, such as their node.
ONE_EVENT_S = 0.25
#: Losses while it was isolated, without a fatal signal, after which a request ends.
MOST_ISOLATED = 2
#: Losses in company after which a request ends.
MOST_IN_COMPANY = 3


def stage_of(stage: str, death: Death) -> str:
    """How far a request was that was lost at `stage` with a process that ended so."""
    if stage == ISOLATED and death in (Death.IN_ISOLATED_CALL, Death.SOMEWHERE):
        return CRASHED
    if stage == IN_COMPANY and death == Death.IN_ISOLATED_CALL:
        # What was beside it may have broken what it found there.
        return ISOLATED
    return stage


class Suspicion:
    """What is known of one request."""

    __slots__ = ("_counted_at", "_in_company", "_isolated", "last")

    def __init__(self) -> None:
        #: Arguments of the last ReplicaLost; empty before any. Not the error: with its traceback it would keep the
        #: request's inputs.
        self.last: tuple[Any, ...] = ()
        self._counted_at = 0.0
        self._isolated = self._in_company = 0

    def lost(self, error: ReplicaLost, now: float) -> float:
        """Receive that a replica was lost with it; the seconds until it may be tried again.

        `now` is a time of `time.monotonic`. Raises what ends it.
        """
        is_first, self.last = not self.last, error.args
        if is_first:
            self._counted_at = now
        elif error.stage != UNDER_WAY:
            if now - self._counted_at <= ONE_EVENT_S:
                # Else it might end one replica after the other within the event.
                return ONE_EVENT_S
            self._counted_at = now
            if (end := self._judged(error)) is not None:
                raise end from None
        return 0.0

    def _judged(self, error: ReplicaLost) -> EnginehouseError | None:
        if error.stage == CRASHED:
            return InferenceFailed(
                f"two replicas were lost while they computed this request, the second time isolated: {error}"
            )
        self._isolated += error.stage == ISOLATED
        if self._isolated == MOST_ISOLATED:
            return InferenceFailed(
                f"three replicas were lost while they computed this request, two of them while it was isolated: {error}"
            )
        self._in_company += error.stage == IN_COMPANY
        if self._in_company < MOST_IN_COMPANY:
            return None
        pool, reason, stage = error.args
        return ReplicaLost(
            pool,
            f"{reason}; {MOST_IN_COMPANY} replicas were lost while they computed this request beside what takes long "
            "there, such as a load: which of them is at fault is unknown",
            stage,
        )
