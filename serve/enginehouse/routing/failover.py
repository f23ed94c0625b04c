"""Failover: one request is tried on one backend after the other until one answers, or nothing more can help.

                    ┌───────────────────────────────────────────────────────┐
                    v                                                       │
    start ──> rank the backends ──none may be tried, none can come──> refused
                    │                                                       │
                    v                                                       │
             try the next one ──answered──> done                            │
              │     │     │                                                 │
              │     │     └─recalled: a better one came up──────────────────┤
              │     └─lost, full, unavailable, late, failing: the next one  │
              │                          └─there is none: wait BACKOFF_S────┘
              └─the request itself is at fault ──> failed

What is told apart, by how an attempt ends:

- *Lost* with its replica (ReplicaLost): the request may have killed it, so it is suspected. From now on it is sent
  isolated, alone in the process of a replica, and never into a router's. Of a further loss counts how it was lost:

      under way                  not in an engine, or nobody knows: says nothing
      isolated in the engine     by a fatal signal: it is at fault, InferenceFailed. Without one, its process may have
                                 been killed from outside, or for its memory: at the second time it is at fault
      in the engine, beside what takes long there, such as a load
                                 a fatal signal in its own thread is as good as being isolated without one;
                                 else it is tried MOST_IN_COMPANY times, then it ends as ReplicaLost, unblamed

  What is lost within ONE_EVENT_S after a loss that counted may have been lost for the same reason: it does not count.

- For any other error, the table `contract.errors.FAULTS` says what may still help:
  *nothing*: it has failed. Another engine may be less strict and answer something.
  *another if sick*: it has failed, unless this backend fails others too; what fails in the next one as well has failed.
  *another*: the next one. When all of them end so, as in an outage of the store, it has failed.
  *another or later*: the next one; when all were tried, it waits. What is *full* refuses a request that stated its
  deadline.
- While another backend could answer, an attempt ends after `attempt_s`; but one of the last priority, which waits for
  all others and would wait for them elsewhere too, does not.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Any, Protocol

from enginehouse.contract.config import LAST
from enginehouse.contract.errors import (
    DeadlineExceeded,
    EnginehouseError,
    InferenceFailed,
    NoBackend,
    Overloaded,
    ReplicaLost,
)
from enginehouse.contract.tensors import Tensors
from enginehouse.pools.isolation import STILL_S
from enginehouse.routing.answer import Answer
from enginehouse.routing.backends import Backend, attempt_s
from enginehouse.routing.coalescing import Recalled
from enginehouse.routing.policy import Choice, Demand
from enginehouse.routing.view import ModelVersion
from enginehouse.transport.router_end import CRASHED, IN_COMPANY, ISOLATED, UNDER_WAY

#: How the error of a request begins that takes replicas along: its sender is told as much.
TWICE_LOST = "two replicas were lost while they computed this request, the second time isolated"
THRICE_LOST = "three replicas were lost while they computed this request, two of them while it was isolated"
#: Seconds until the ranking is tried again when every backend of a request has failed.
BACKOFF_S = 0.05
#: Seconds that a suspected request may wait for its isolation, beyond those of an attempt.
ISOLATION_S = 2 * STILL_S
#: Replicas that are lost within so many seconds may have been lost for one reason, such as their node.
ONE_EVENT_S = 0.25
#: Losses while it was isolated, without a fatal signal, after which a request ends.
MOST_ISOLATED = 2
#: Losses in company after which a request ends.
MOST_IN_COMPANY = 3


class Ranking(Protocol):
    """What failover asks of the router."""

    def rank(self, version: ModelVersion, demand: Demand, priority: int, fresh: bool = False) -> Sequence[Choice]:
        """Live backends of `version`: those that may be tried, best first; then the others, with reasons."""
        ...

    def wake_better(self, version: ModelVersion, demand: Demand, best: Sequence[Choice]) -> None:
        """Wake an idle backend that would be better than `best`."""
        ...

    def may_wait(self, version: ModelVersion, choices: Sequence[Choice], demand: Demand, is_new: bool) -> bool:
        """Whether a backend that cannot answer now may soon."""
        ...

    def check_served(self, version: ModelVersion) -> None:
        """Raise ModelNotFound when the model has been removed."""
        ...

    def refusal(self, version: ModelVersion, choices: Sequence[Choice], demand: Demand) -> EnginehouseError:
        """Why none of `choices` may be tried."""
        ...

    def backend(self, version: ModelVersion, choice: Choice) -> Backend:
        """The backend that was chosen."""
        ...


class Suspicion:
    """What is known of one request by the replicas that were lost with it."""

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
            return InferenceFailed(f"{TWICE_LOST}: {error}")
        self._isolated += error.stage == ISOLATED
        if self._isolated == MOST_ISOLATED:
            return InferenceFailed(f"{THRICE_LOST}: {error}")
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


class Failover:
    """One request on its way: what was tried, what is known of it by now. Made anew for each request.

    `deadline` is a time of `time.monotonic`; whoever awaits `answer` cancels it then.
    """

    __slots__ = (
        "_deadline",
        "_demand",
        "_failed_in",
        "_inputs",
        "_is_counted",
        "_lasting",
        "_may_mend",
        "_priority",
        "_ranking",
        "_refused",
        "_suspicion",
        "_version",
        "asked",
        "attempts",
        "failures",
    )

    def __init__(
        self,
        ranking: Ranking,
        version: ModelVersion,
        inputs: Tensors,
        demand: Demand,
        priority: int,
        deadline: float,
    ) -> None:
        self._ranking = ranking
        self._version = version
        self._inputs = inputs
        self._demand = demand
        self._priority = priority
        self._deadline = deadline
        #: Backends that were asked, and what came of those that did not answer.
        self.asked: list[str] = []
        self.attempts = 0
        self.failures: list[str] = []
        self._suspicion = Suspicion()
        # The backend in which it failed while that failed others too.
        self._failed_in = ""
        # Of this round: arguments of the last Overloaded; class and arguments of the last error that waiting does not
        # mend, and whether it may mend another one. Not the errors, whose tracebacks would keep this request's inputs.
        self._refused: tuple[Any, ...] | None = None
        self._lasting: tuple[type[EnginehouseError], tuple[Any, ...]] | None = None
        self._may_mend = False
        self._is_counted = False

    async def answer(self) -> Answer:
        """Try backends until one answers. Raises EnginehouseError."""
        ranked = self._rank(is_new=True)
        while True:
            self._refused, self._lasting, self._may_mend = None, None, False
            try:
                for place, choice in enumerate(ranked, 1):
                    if self._demand.suspected and choice.backend.resident:
                        # Ranked before it was.
                        continue
                    answer = await self._try(choice, has_others=len(ranked) > 1, is_last=place == len(ranked))
                    if answer is not None:
                        return answer
            except Recalled:
                # Nobody was asked; a better backend may be there now.
                self.attempts -= 1
                self.asked.pop()
            else:
                if self._refused is not None and self._demand.stated and not self._demand.suspected:
                    # Whoever states a deadline is told at once that it will not be met. A suspected request would be
                    # sent again as one that is not.
                    raise Overloaded(*self._refused)
                if self._lasting is not None and not self._may_mend:
                    kind, arguments = self._lasting
                    raise kind(*arguments)
                await asyncio.sleep(BACKOFF_S)
            # Once accepted, no prediction refuses it any more.
            self._demand = self._demand._replace(budget_ms=math.inf)
            ranked = self._rank(is_new=False)

    def _rank(self, is_new: bool) -> Sequence[Choice]:
        """The backends that may be tried, best first; none while one may yet come up. Else raises the refusal."""
        choices = self._ranking.rank(self._version, self._demand, self._priority, fresh=not is_new)
        ranked = [choice for choice in choices if not choice.reason]
        if is_new:
            self._ranking.wake_better(self._version, self._demand, ranked[:1])
        else:
            self._ranking.check_served(self._version)
        if not ranked and not self._ranking.may_wait(self._version, choices, self._demand, is_new):
            refusal = self._ranking.refusal(self._version, choices, self._demand)
            if self._suspicion.last and isinstance(refusal, NoBackend):
                # Another router that this request were handed to would not know that it is suspected.
                pool, reason, stage = self._suspicion.last
                raise ReplicaLost(pool, f"{reason}; {refusal}", stage)
            raise refusal
        return ranked

    async def _try(self, choice: Choice, has_others: bool, is_last: bool) -> Answer | None:
        """The answer of one backend; None when another one may have it. Raises what ends the request, and Recalled."""
        self.attempts += 1
        pool, rows = choice.backend.pool, self._demand.rows
        self.asked.append(pool)
        backend = self._ranking.backend(self._version, choice)
        if not self._is_counted:
            self._is_counted = True
            backend.count_demand(rows, self._demand.size)
        # Given up before the deadline only if another backend or replica could answer.
        until = self._deadline
        if (has_others or choice.backend.replicas > 1) and self._priority != LAST:
            patience_s = ISOLATION_S if self._demand.suspected else 0.0
            until = min(until, time.monotonic() + attempt_s(choice.predicted_ms) + patience_s)
        try:
            if self._demand.suspected:
                outputs, timing = await backend.infer_isolated(self._inputs, rows, until)
            else:
                outputs, timing = await backend.infer(self._inputs, rows, until, self._priority)
        except ReplicaLost as error:
            self._may_mend = True
            self._demand = self._demand._replace(suspected=True)
            self.failures.append(str(error))
            if wait_s := self._suspicion.lost(error, time.monotonic()):
                await asyncio.sleep(wait_s)
        except EnginehouseError as error:
            if isinstance(error, DeadlineExceeded) and until == self._deadline:
                raise DeadlineExceeded(f"{self._version.config.id} in {pool}: {error}") from None
            match error.fault.help:
                case "nothing":
                    raise
                case "another if sick":
                    if self._failed_in or is_last or not backend.failed_repeatedly:
                        raise
                    self._failed_in = pool
                case "another":
                    self._lasting = type(error), error.args
                case "another or later":
                    self._may_mend = True
            if isinstance(error, Overloaded):
                self._refused = error.args
            self.failures.append(f"{pool}: {error}")
        else:
            return Answer(outputs, self._version, choice, timing, self.attempts)
        return None
