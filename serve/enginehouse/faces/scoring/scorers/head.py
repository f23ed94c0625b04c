"""Whether the head of the cluster that this process is connected to still answers.

Calls of Ray that need the head wait for a minute when it does not, and end the process then, without a word.
"""

from __future__ import annotations

import time

import ray

from enginehouse.cluster.ports import answers

#: Seconds between looks.
EVERY_S = 2.0


class Head:
    """The head as this process sees it."""

    def __init__(self) -> None:
        self.address = str(ray.get_runtime_context().gcs_address)
        self._answered = self._looked = time.monotonic()

    def silent_s(self) -> float:
        """Seconds since it answered last; 0 while it does."""
        now = time.monotonic()
        if now - self._looked >= EVERY_S:
            host, _, port = self.address.rpartition(":")
            self._looked = now
            if answers(host, int(port)):
                self._answered = now
        return self._looked - self._answered
