"""How many replicas a pool has: none without its hardware, else as many as keep its engines busy but not overrun.

Routers merge requests into few calls, so the number of calls under way, which Serve scales by, says nothing about
demand. What replicas report is the share of time that they compute.
"""

from __future__ import annotations

import math
from typing import Any

from ray.serve.config import AutoscalingContext

from enginehouse import availability

#: What a replica's `record_autoscaling_stats` calls the share.
BUSY = "busy"


class HardwareAndLoad:
    """Serve's autoscaling policy of a pool; runs in the Serve controller, which adds the delays of the configuration.

    Without it a pool whose nodes are missing would keep the application DEPLOYING, and from zero only a request would
    wake it.
    """

    def __init__(self, nodes: list[str], min_replicas: int, max_replicas: int, target_busy: float) -> None:
        self._nodes = nodes
        self._min, self._max, self._target_busy = min_replicas, max_replicas, target_busy

    def __call__(self, context: AutoscalingContext) -> tuple[int | float, dict[str, Any]]:
        if availability.nodes_with(self._nodes) == 0:
            return 0, context.policy_state
        if context.current_num_replicas == 0 or self._min == self._max:
            return self._min, context.policy_state
        busy = sum((context.aggregated_metrics or {}).get(BUSY, {}).values())
        return self.wanted(busy), context.policy_state

    def wanted(self, busy: float) -> int:
        """Replicas to have when those there are compute `busy` seconds a second in all.

        Fully busy ones ask for a quarter more, and at least for one.
        """
        return min(self._max, max(self._min, math.ceil(busy / self._target_busy - 1e-9)))
