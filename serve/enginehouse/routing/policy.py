"""The policy: pure functions that rank backends for a request. Knows no Ray, no clock, no network."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from enginehouse.contract.latency import LatencyTable
from enginehouse.contract.manifest import ACCELERATOR_OF, EngineKind, NumericsClass, Precision

#: What a call to another process adds at least, in milliseconds (benchmarks/README.md, "Where the time goes").
HOP_MS = 0.4
#: What a predicted wait is taken times when it is held against a deadline: those before it in the queue vary.
MARGIN = 1.25
#: Precisions from the least to the most exact; bf16 has fewer bits of mantissa than fp16.
EXACTNESS: Mapping[str, int] = {"int8": 0, "bf16": 1, "fp16": 2, "fp32": 3}
#: Which requests go first when some have to wait; as in Triton a lower number goes before a higher one.
FIRST, USUAL, LAST = 1, 5, 9


class BackendState(NamedTuple):
    """One model version on one pool as it is right now.

    `replicas` counts those where the engine is warm, on `nodes`; a backend without any is never chosen. A `resident`
    engine is in the router's own process. `price` is what a second of a replica costs beside those of other pools.

    `wait_ms` is how long the freest replica is busy with what it was sent. `pace` is what calls take lately over what
    the table says, by the bit length of their rows; under 0 for any other. One that `fails` is tried when no other is
    left. In the router `queued_rows` wait to be sent, `batch_rows` at a time, and lately each took `drain_ms` (0: there
    was no queue).
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
    queued_rows: int = 0

    def queued(self, rows: int) -> BackendState:
        """The same while so many rows wait."""
        # As `_replace` does, in a third of the time: for every request that finds others before it.
        return tuple.__new__(BackendState, (*self[:-1], rows))

    def compute_ms(self, rows: int, size: int | None) -> float:
        """Predicted time of an engine call, as it goes lately; inf when it was never measured."""
        if self.table is None:
            return math.inf
        known = self.pace
        pace = known.get(rows.bit_length()) or known.get(0, 1.0) if known else 1.0
        return self.table.predict_ms(rows, size) * pace


class Demand(NamedTuple):
    """What a request asks of its backend.

    Its rows, and which numerics may answer; optionally one pool by name, and the least exact precision. `size` is its
    extent along the model's cost axis, None where the model has none. `budget_ms` is what is left until its deadline:
    one that the caller has `stated` lets the cheapest backend answer that makes it, and is held against the whole time;
    the default only against the wait.
    """

    rows: int
    numerics: NumericsClass | Literal["any"] = "full"
    pool: str | None = None
    size: int | None = None
    min_precision: Precision = "int8"
    budget_ms: float = math.inf
    stated: bool = False


class Choice(NamedTuple):
    """A backend for a request: why not (empty: it may be tried), and what is predicted.

    `wait_ms` and `compute_ms` with the hop, if there is one, make `predicted_ms` (inf: never measured). `slowness` is
    in milliseconds a row when all that waits in the router comes along, `cost` that times the price. One whose hardware
    a faster engine computes on is `behind` that: its work would only take the hardware's time from it.
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
    """Judges all backends for a request: those that may be tried first, best first, then the others with the reason."""

    def rank(self, backends: Sequence[BackendState], demand: Demand) -> Sequence[Choice]: ...


class FastestInTime:
    """The backend that is predicted to answer first; for a stated deadline the cheapest of those that make it.

    Engines that share their hardware are compared by speed, and only the fastest one's queue counts: what waits for one
    engine of a node would wait for the other one too. When none makes the deadline, none may be tried.
    """

    def rank(self, backends: Sequence[BackendState], demand: Demand) -> Sequence[Choice]:
        crowd = max([backend.queued_rows for backend in backends], default=0)
        fit: list[Choice] = []
        out: list[Choice] = []
        for backend in backends:
            if reason := _unfit(backend, demand):
                out.append(Choice(backend, reason))
            else:
                fit.append(_predict(backend, demand, crowd))
        if len(fit) > 1:
            fit = _placed(fit)
            fit.sort(key=functools.partial(_cheapest, demand.budget_ms) if demand.stated else _soonest)
        late = [choice for choice in fit if _is_late(choice, demand)]
        if not late:
            return [*fit, *out] if out else fit
        if all(choice in late for choice in fit if not choice.behind):
            return [*(_refused(choice, demand) for choice in fit), *out]
        return [*(choice for choice in fit if choice not in late), *(_refused(choice, demand) for choice in late), *out]


def _unfit(backend: BackendState, demand: Demand) -> str:
    if demand.pool is not None and demand.pool != backend.pool:
        return f"the request asks for {demand.pool}"
    if backend.replicas <= 0:
        return "no replica is warm"
    if demand.numerics != backend.numerics and demand.numerics != "any":
        return f"its {backend.artifact} is not of the numerics class {demand.numerics!r}"
    if EXACTNESS[backend.precision] < EXACTNESS[demand.min_precision]:
        return f"{backend.precision} is less exact than {demand.min_precision}"
    return ""


def _predict(backend: BackendState, demand: Demand, crowd: int) -> Choice:
    rows, size, queued = demand.rows, demand.size, backend.queued_rows
    wait_ms = backend.wait_ms
    if not crowd:
        compute_ms = busy_ms = backend.compute_ms(rows, size)
        crowded = rows
    else:
        most = max(backend.batch_rows, rows)
        together, crowded = min(most, queued + rows), min(most, crowd + rows)
        compute_ms = backend.compute_ms(together, size)
        if queued and backend.drain_ms:
            wait_ms += queued * backend.drain_ms
        elif queued and backend.table:
            full = backend.batch_rows
            full_ms = compute_ms if together == full else backend.compute_ms(full, size)
            wait_ms += queued / full * full_ms / backend.replicas
        # As many as would come together if all that wait in this router came here.
        busy_ms = compute_ms if crowded == together else backend.compute_ms(crowded, size)
    at_once_ms = compute_ms if backend.resident else compute_ms + HOP_MS
    slowness = (busy_ms if backend.resident else busy_ms + HOP_MS) / crowded
    return Choice(backend, "", wait_ms, compute_ms, wait_ms + at_once_ms, slowness * backend.price, slowness)


def _placed(choices: list[Choice]) -> list[Choice]:
    """Each behind the fastest engine that computes on all nodes that it has, if that is another one."""
    by_speed = sorted(choices, key=_slowness)
    for place, choice in enumerate(by_speed):
        for other in by_speed:
            if other is not choice and _is_behind(choice, other):
                by_speed[place] = tuple.__new__(Choice, (*choice[:-1], other.backend.pool))
                break
    return by_speed


def _is_behind(choice: Choice, other: Choice) -> bool:
    mine, theirs = choice.backend, other.backend
    if mine.resident != theirs.resident and mine.engine == theirs.engine and mine.artifact == theirs.artifact:
        # The same engine on the same hardware differs by the hop alone: what else was measured of it is chance.
        is_better = theirs.resident
    else:
        is_better = other.slowness < choice.slowness and ACCELERATOR_OF[mine.engine] == ACCELERATOR_OF[theirs.engine]
    return is_better and bool(mine.nodes) and mine.nodes <= theirs.nodes and not theirs.fails


def _slowness(choice: Choice) -> float:
    return choice.slowness


def _is_late(choice: Choice, demand: Demand) -> bool:
    wait_ms = choice.wait_ms * MARGIN
    if not demand.stated:
        # The default bounds the queue. How long the engine may take is not its business.
        return wait_ms > demand.budget_ms
    # Of an engine that was never measured nobody can say so.
    return choice.compute_ms < math.inf and wait_ms + choice.predicted_ms - choice.wait_ms > demand.budget_ms


def _refused(choice: Choice, demand: Demand) -> Choice:
    if choice.reason:
        return choice
    at_once_ms = choice.predicted_ms - choice.wait_ms
    if at_once_ms > demand.budget_ms:
        reason = f"takes {at_once_ms:.3g} ms"
    else:
        reason = f"takes {at_once_ms:.3g} ms after a wait of {choice.wait_ms:.3g} ms"
    return choice._replace(reason=reason)


def _soonest(choice: Choice) -> tuple[bool, bool, float, bool]:
    backend = choice.backend
    return bool(backend.fails), bool(choice.behind), choice.predicted_ms, not backend.resident


def _cheapest(budget_ms: float, choice: Choice) -> tuple[bool, bool, float, float]:
    # The longer the wait is beside the budget, the dearer: or requests that have time would fill the cheapest backend's
    # queue up to their deadline, and leave none of it to those that have not (benchmarks/replay).
    left = max(1e-6, 1 - choice.wait_ms * MARGIN / budget_ms)
    return bool(choice.backend.fails), bool(choice.behind), choice.cost / left, choice.predicted_ms
