"""How many replicas a pool has: none without its hardware, else as many as keep its engines busy but not overrun.

Routers merge requests into few calls and hold others back, so the number of calls under way, which Serve scales by,
says nothing about demand. Replicas report seconds of an engine a second: those that they compute, and those that were
asked of routers, by the latency table as calls take lately.
"""

from __future__ import annotations

import math
from typing import Any

from ray.serve.config import AutoscalingContext

from enginehouse.pools import nodes

#: What a replica's `record_autoscaling_stats` calls the share of the time that it computes, and its part of what was
#: asked for. The former is what work really takes; the latter goes on rising when the engines cannot do more.
BUSY, DEMAND = "busy", "demand"
#: A replica is given up when the others would still be this much below the target: a load at the border would otherwise
#: have it come and go.
SPARE = 0.9


class HardwareAndLoad:
    """Serve's autoscaling policy of a pool; runs in the Serve controller, which adds the delays of the configuration.

    Without it a pool whose nodes are missing would keep the application DEPLOYING; one that `starts_nodes` may. A pool
    that rests at zero comes up when a router calls its `wake`.
    """

    def __init__(
        self, nodes: list[str], min_replicas: int, max_replicas: int, target_busy: float, starts_nodes: bool = False
    ) -> None:
        self._nodes, self._starts_nodes = nodes, starts_nodes
        self._min, self._max, self._target_busy = min_replicas, max_replicas, target_busy

    def __call__(self, context: AutoscalingContext) -> tuple[int | float, dict[str, Any]]:
        is_called = int(context.total_num_requests > 0)
        is_here = nodes.count_with(self._nodes) > 0
        if not is_here and not self._starts_nodes:
            return 0, context.policy_state
        if self._min == self._max:
            return self._min, context.policy_state
        if context.current_num_replicas == 0 or not is_here:
            # A replica that waits for its node is what Ray's cluster autoscaler goes by.
            return max(self._min, is_called), context.policy_state
        metrics = context.aggregated_metrics or {}
        seconds = max(sum(metrics.get(name, {}).values()) for name in (BUSY, DEMAND))
        return max(is_called, self.wanted(seconds, context.target_num_replicas)), context.policy_state

    def wanted(self, seconds: float, now: int) -> int:
        """Replicas to have when there are to be `now` and the load is so many seconds of an engine a second."""
        more, fewer = (self._bounded(math.ceil(seconds / target - 1e-9)) for target in self._targets)
        return more if more > now else min(now, fewer)

    @property
    def _targets(self) -> tuple[float, float]:
        return self._target_busy, self._target_busy * SPARE

    def _bounded(self, count: int) -> int:
        return min(self._max, max(self._min, count))
