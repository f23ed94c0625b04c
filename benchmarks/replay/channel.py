"""What one router knows of one replica: `enginehouse.channel.Channel`, in simulated time."""

from __future__ import annotations

from benchmarks.replay.machines import Replica


class Channel:
    """Predicted work of a replica: what this router sent it, and what it said of others when it last answered."""

    __slots__ = ("_others_ms", "_sent_ms", "_told_at", "replica")

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self._sent_ms = 0.0
        self._others_ms = 0.0
        self._told_at = 0.0

    def wait_ms(self, now: float) -> float:
        """Predicted time until the replica is done with what it was sent."""
        return self._sent_ms + max(0.0, self._others_ms - (now - self._told_at) * 1e3)

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
