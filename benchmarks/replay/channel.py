"""What one router knows of one replica: `enginehouse.channel.Channel`, in simulated time."""

from __future__ import annotations

import math

from benchmarks.replay.machines import Replica
from enginehouse.channel import PING_S, SILENT_S


class Channel:
    """Predicted work of a replica: what this router sent it, and what it said of others when it last answered."""

    __slots__ = ("_others_ms", "_ran_out_at", "_sent_ms", "_told_at", "replica")

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self._sent_ms = 0.0
        self._others_ms = 0.0
        self._told_at = 0.0
        self._ran_out_at = -math.inf

    def wait_ms(self, now: float) -> float:
        """Predicted time until the replica is done with what it was sent; more while it may be gone."""
        silence_ms = SILENT_S * 1e3 if self._is_doubted(now) else 0.0
        return self._sent_ms + max(0.0, self._others_ms - (now - self._told_at) * 1e3) + silence_ms

    def ran_out(self, now: float) -> None:
        """A call was given up at its deadline."""
        self._ran_out_at = now

    def _is_doubted(self, now: float) -> bool:
        # One that is there answers the next ping.
        is_asked = now - self._ran_out_at < PING_S
        return self._ran_out_at > self._told_at and (is_asked or not self.replica.machine.is_up)

    def sent(self, expected_ms: float) -> None:
        """A call is under way that takes so long."""
        self._sent_ms += expected_ms

    def over(self, expected_ms: float) -> None:
        """It is no longer under way or no longer waited for."""
        self._sent_ms = max(0.0, self._sent_ms - expected_ms)

    def told(self, now: float) -> None:
        """An answer has come, and with it how much the replica has to do."""
        self._told_at = now
        self._others_ms = max(0.0, self.replica.backlog_ms() - self._sent_ms)
