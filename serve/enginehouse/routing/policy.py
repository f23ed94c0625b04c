"""The policy: which backend a request is sent to. Pure functions of plain values: no Ray, no clock, no network.

1. A backend that the request does not allow (another pool, numerics, precision), that has no warm replica, or whose
   artifact is not right for a value in the request, is out.
2. The time to an answer is predicted for each of the others: the wait in its queues plus the time of the engine call,
   from the latency table, corrected by what calls take lately.
3. One that would only slow a faster engine on its nodes (`behind`) is ranked last but for failing ones.
4. They are ordered by predicted time; for a request that states a deadline, by cost among those that meet it.
5. When all that are not `behind` would be late, none may be tried: what is behind would only make them later. Each says
   what it would take.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from enginehouse.contract.bounds import InputBounds, Values, described
from enginehouse.contract.latency import LatencyTable
from enginehouse.contract.manifest import ACCELERATOR_OF, EngineKind, NumericsClass, NumericsRule, Precision

#: Milliseconds that a call to another process adds at least (benchmarks/README.md, "Where the time goes").
HOP_MS = 0.4
#: Safety factor on the predicted wait when it is checked against a deadline: requests ahead in the queue vary.
MARGIN = 1.25
#: How much faster than a busy engine another one of its node must be to be preferred: about the noise of what was
#: measured. Requests would go to and fro, and two engines with half of the cores each answer late (p99 1.7 for 0.9 s).
KEPT = 1.1
#: Precisions by exactness, the least exact first; bf16 has fewer bits of mantissa than fp16.
EXACTNESS: Mapping[str, int] = {"int8": 0, "bf16": 1, "fp16": 2, "fp32": 3}


class BackendState(NamedTuple):
    """One model version on one pool, as one router sees it at one moment.

    - `replicas`: how many have the engine warm, on `nodes`. A backend without any is never chosen.
    - `resident`: the engine is in the router's own process, so that no call to another one is needed.
    - `price`: cost of one second of a replica, relative to the other pools.
    - `wait_ms`: backlog of the replica that is free first.
    - `pace`: recent call times divided by the latency table's, by the bit length of the rows of a call; the entry at 0
      is for numbers of rows not seen yet.
    - `fails`: why its last calls failed; such a backend is tried last.
    - `inputs_only`: the values of inputs for which its artifact is right.
    - `lanes`: how many calls a replica computes at once.
    - `pads`: whether rows of several lengths may share a call, padded as the artifact says.
    - `queued_rows`: rows that wait in this router, to be sent `batch_rows` at a time. They lately drained at `drain_ms`
      ms per row (0: there was no queue).
    """

    pool: str
    engine: EngineKind
    artifact: str
    precision: str
    numerics: NumericsClass
    replicas: int
    table: LatencyTable | None
    resident: bool = False
    nodes: frozenset[str] = frozenset()
    price: float = 1.0
    wait_ms: float = 0.0
    pace: Mapping[int, float] = {}
    fails: str = ""
    batch_rows: int = 1
    drain_ms: float = 0.0
    inputs_only: InputBounds = {}
    lanes: int = 1
    pads: bool = False
    queued_rows: int = 0

    def queued(self, rows: int) -> BackendState:
        """This state with `queued_rows` set to `rows`."""
        # What `_replace` does, in a third of the time: for every request that finds others waiting.
        return tuple.__new__(BackendState, (*self[:-1], rows))

    def compute_ms(self, rows: int, size: int | None) -> float:
        """Predicted milliseconds of one engine call, at the recent pace; inf when it was never measured."""
        if self.table is None:
            return math.inf
        known = self.pace
        pace = known.get(rows.bit_length()) or known.get(0, 1.0) if known else 1.0
        return self.table.predict_ms(rows, size) * pace


class Demand(NamedTuple):
    """What a request asks of its backend.

    - `rows`; `size` is its extent along the model's cost axis, None for a model without one.
    - `suspected`: it may have crashed the process it was in, so it must not come into a router's.
    - `numerics`: the class that may answer, or any.
    - `pool`: the only backend that may answer; `min_precision`: the least exact precision that may.
    - `budget_ms`: time left until the deadline. A deadline that the caller has `stated` is checked against the whole
      predicted time, and the cheapest backend that meets it is preferred. The default deadline is checked only against
      the predicted wait, and the fastest backend is preferred.
    - `values`: those of its inputs, which are looked at only if a backend asks; None when they are not known.
    """

    rows: int
    numerics: NumericsRule = "full"
    pool: str | None = None
    size: int | None = None
    min_precision: Precision = "int8"
    budget_ms: float = math.inf
    stated: bool = False
    suspected: bool = False
    values: Values | None = None


class Choice(NamedTuple):
    """One backend judged for one request.

    - `reason`: why it may not be tried; empty when it may.
    - `predicted_ms` = `wait_ms` + `compute_ms` + `HOP_MS` unless it is resident; inf when it was never measured.
    - `slowness`: ms per row, hop included, of a call with this router's longest queue; `cost` = slowness x price.
    - `behind`: the pool of a faster engine on the same nodes, from which it would only take computing time.
    """

    backend: BackendState
    reason: str = ""
    wait_ms: float = 0.0
    compute_ms: float = math.inf
    predicted_ms: float = math.inf
    cost: float = math.inf
    slowness: float = math.inf
    behind: str = ""


class Policy(Protocol):
    """What the router asks of a policy. Implementations are pure: same states, same ranking."""

    def rank(self, backends: Sequence[BackendState], demand: Demand) -> Sequence[Choice]:
        """All `backends`: those that may be tried, best first, then the others with their reasons."""
        ...


class FastestInTime:
    """Ranks by predicted time; under a stated deadline, by cost among the backends that are predicted to meet it.

    Engines that share their nodes are compared by speed alone, not by queue: what waits for one engine of a node would
    wait for the other one too. When all but those behind are late, none may be tried.
    """

    def rank(self, backends: Sequence[BackendState], demand: Demand) -> Sequence[Choice]:
        most_queued = max([backend.queued_rows for backend in backends], default=0)
        fit: list[Choice] = []
        out: list[Choice] = []
        for backend in backends:
            if reason := unfit(backend, demand):
                out.append(Choice(backend, reason))
            else:
                fit.append(_predict(backend, demand, most_queued))
        if len(fit) > 1:
            fit = _placed(fit)
            fit.sort(key=functools.partial(_cheapest, demand.budget_ms) if demand.stated else _soonest)
        late = [choice for choice in fit if _is_late(choice, demand)]
        if not late:
            return [*fit, *out] if out else fit
        if all(choice in late for choice in fit if not choice.behind):
            return [*(_refused(choice, demand) for choice in fit), *out]
        return [*(choice for choice in fit if choice not in late), *(_refused(choice, demand) for choice in late), *out]


def unfit(backend: BackendState, demand: Demand) -> str:
    """Why `backend` may not answer such a request, however fast it is; "" when it may."""
    if demand.pool is not None and demand.pool != backend.pool:
        return f"the request asks for {demand.pool}"
    if backend.replicas <= 0:
        return "no replica is warm"
    if demand.suspected and backend.resident:
        return "a replica was lost with the request, so it is kept out of the routers' processes"
    if demand.numerics != backend.numerics and demand.numerics != "any":
        return f"its {backend.artifact} is not of the numerics class {demand.numerics!r}"
    if EXACTNESS[backend.precision] < EXACTNESS[demand.min_precision]:
        return f"{backend.precision} is less exact than {demand.min_precision}"
    # Last: it takes a look at all values, once for each request.
    if backend.inputs_only and demand.values is not None and (value := demand.values.beyond(backend.inputs_only)):
        return f"its {backend.artifact} answers {described(backend.inputs_only)} only, and {value}"
    return ""


def _predict(backend: BackendState, demand: Demand, most_queued: int) -> Choice:
    rows, size, queued = demand.rows, demand.size, backend.queued_rows
    wait_ms = backend.wait_ms
    if not most_queued:
        compute_ms = full_call_ms = backend.compute_ms(rows, size)
        full_call_rows = rows
    else:
        most = max(backend.batch_rows, rows)
        together, full_call_rows = min(most, queued + rows), min(most, most_queued + rows)
        compute_ms = backend.compute_ms(together, size)
        if queued and backend.drain_ms:
            wait_ms += queued * backend.drain_ms
        elif queued and backend.table:
            full = backend.batch_rows
            full_ms = compute_ms if together == full else backend.compute_ms(full, size)
            wait_ms += queued / full * full_ms / (backend.replicas * backend.lanes)
        # A call with as many rows as if the longest queue of this router's backends waited here.
        full_call_ms = compute_ms if full_call_rows == together else backend.compute_ms(full_call_rows, size)
    at_once_ms = compute_ms if backend.resident else compute_ms + HOP_MS
    slowness = (full_call_ms if backend.resident else full_call_ms + HOP_MS) / full_call_rows
    return Choice(backend, "", wait_ms, compute_ms, wait_ms + at_once_ms, slowness * backend.price, slowness)


def _placed(choices: list[Choice]) -> list[Choice]:
    """The choices by speed; each marked as behind the fastest other engine that computes on all of its nodes."""
    by_speed = sorted(choices, key=_kept_slowness)
    for place, choice in enumerate(by_speed):
        for other in by_speed:
            if other is not choice and _is_behind(choice, other):
                by_speed[place] = tuple.__new__(Choice, (*choice[:-1], other.backend.pool))
                break
    return by_speed


def _is_behind(choice: Choice, other: Choice) -> bool:
    mine, theirs = choice.backend, other.backend
    if mine.resident != theirs.resident and mine.engine == theirs.engine and mine.artifact == theirs.artifact:
        # The same engine on the same hardware differs by the hop alone; any other measured difference is noise.
        is_better = theirs.resident
    else:
        is_better = (
            _kept_slowness(other) < _kept_slowness(choice)
            and ACCELERATOR_OF[mine.engine] == ACCELERATOR_OF[theirs.engine]
        )
    return is_better and bool(mine.nodes) and mine.nodes <= theirs.nodes and not theirs.fails


def _kept_slowness(choice: Choice) -> float:
    return choice.slowness if choice.wait_ms else choice.slowness * KEPT


def _is_late(choice: Choice, demand: Demand) -> bool:
    wait_ms = choice.wait_ms * MARGIN
    if not demand.stated:
        # The default deadline bounds the time in queues. How long a model computes is up to the model.
        return wait_ms > demand.budget_ms
    # An engine that was never measured is given the benefit of the doubt.
    return choice.compute_ms < math.inf and wait_ms + choice.predicted_ms - choice.wait_ms > demand.budget_ms


def _refused(choice: Choice, demand: Demand) -> Choice:
    if choice.reason:
        return choice
    at_once_ms = choice.predicted_ms - choice.wait_ms
    if at_once_ms > demand.budget_ms:
        reason = f"takes {told_ms(at_once_ms)}"
    elif choice.behind and not _is_late(choice, demand):
        reason = f"computes on the cores that {choice.behind} is busy on"
    else:
        reason = f"takes {told_ms(at_once_ms)} after a wait of {told_ms(choice.wait_ms)}"
    return choice._replace(reason=reason)


def told_ms(milliseconds: float) -> str:
    """A duration for people: in seconds from 1 s on."""
    return f"{milliseconds:.3g} ms" if milliseconds < 999.5 else f"{milliseconds / 1e3:.3g} s"


def _soonest(choice: Choice) -> tuple[bool, bool, float, bool]:
    backend = choice.backend
    return bool(backend.fails), bool(choice.behind), choice.predicted_ms, not backend.resident


def _cheapest(budget_ms: float, choice: Choice) -> tuple[bool, bool, float, float]:
    # The cost rises with the share of the budget that is spent waiting. Otherwise requests with time to spare would
    # fill the cheapest backend's queue up to their deadline, and leave no room for urgent ones (benchmarks/replay).
    left = max(1e-6, 1 - choice.wait_ms * MARGIN / budget_ms)
    return bool(choice.backend.fails), bool(choice.behind), choice.cost / left, choice.predicted_ms
