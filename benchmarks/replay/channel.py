"""What one router knows of one replica: `enginehouse.transport.router_end.Channel`, in simulated time."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from benchmarks.replay.fleet import Model
from benchmarks.replay.machines import Replica
from enginehouse.transport.router_end import PING_S, SILENT_S


@dataclass(slots=True)
class _Load:
    """Predicted work for one model: what this router sent, and what the replica said of others when it answered."""

    sent_ms: float = 0.0
    others_ms: float = 0.0
    told_at: float = 0.0

    def wait_ms(self, now: float) -> float:
        return self.sent_ms + max(0.0, self.others_ms - (now - self.told_at) * 1e3)


class Channel:
    """Of two replicas that are equally far with a model, the one with less to do in all is freer."""

    __slots__ = ("_loads", "_ran_out_at", "_told_at", "replica")

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self._loads: defaultdict[Model, _Load] = defaultdict(_Load)
        self._told_at = 0.0
        self._ran_out_at = -math.inf

    def wait_ms(self, now: float, model: Model) -> float:
        """Predicted time until the replica is done with what it was sent for a model; more while it may be gone."""
        load = self._loads.get(model)
        silence_ms = SILENT_S * 1e3 if self._is_doubted(now) else 0.0
        return silence_ms + (load.wait_ms(now) if load else 0.0)

    def load_ms(self, now: float) -> float:
        """The same for all models together."""
        return sum(load.wait_ms(now) for load in self._loads.values())

    def ran_out(self, now: float) -> None:
        """A call was given up at its deadline."""
        self._ran_out_at = now

    def _is_doubted(self, now: float) -> bool:
        # One that is there answers the next ping.
        is_asked = now - self._ran_out_at < PING_S
        return self._ran_out_at > self._told_at and (is_asked or not self.replica.machine.is_up)

    def sent(self, model: Model, expected_ms: float) -> None:
        """A call is under way that takes so long."""
        self._loads[model].sent_ms += expected_ms

    def over(self, model: Model, expected_ms: float) -> None:
        """It is no longer under way or no longer waited for."""
        load = self._loads[model]
        load.sent_ms = max(0.0, load.sent_ms - expected_ms)

    def told(self, now: float, model: Model) -> None:
        """An answer or a refusal has come, and with it how much the replica has to do for the model."""
        load = self._loads[model]
        self._told_at = load.told_at = now
        load.others_ms = max(0.0, self.replica.engine(model).backlog_ms() - load.sent_ms)
        if load.sent_ms + load.others_ms < 1e-6:
            del self._loads[model]
