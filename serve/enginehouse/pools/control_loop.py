"""How often Serve's controller makes its rounds: seldom while nothing is asked for and nothing changes.

A round takes 5 ms of CPU (Ray Serve 2.60, two pools), and there are five or ten a second: a quarter of what an idle
server costs. Serve reads the interval in every round, and every round asks the pools' policies, which say here whether
anything is going on. What waits longer at rest is a change of the catalog and a replacement: half an interval.
"""

from __future__ import annotations

import os
import time

from enginehouse.contract.config import ROUNDS_AT_REST
from enginehouse.pools import ray_private

#: Seconds without work or change after which it is at rest.
QUIET_S = 5.0


class ControlLoop:
    """The rounds of this process's controller."""

    def __init__(self) -> None:
        self._at_rest_s = float(os.environ.get(ROUNDS_AT_REST) or 0)
        self._busy_at = time.monotonic()

    def note(self, is_busy: bool) -> None:
        """A pool is asked for something, or has not as many replicas as it should; or neither."""
        if not self._at_rest_s:
            return
        now = time.monotonic()
        if is_busy:
            self._busy_at = now
        ray_private.set_control_loop(self._at_rest_s if now - self._busy_at > QUIET_S else None)


of_this_process = ControlLoop()
