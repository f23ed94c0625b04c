"""Serve's autoscaling policy of a pool: replicas follow engine load; 0 without hardware unless `starts_nodes`.

A pool that no model of the catalog has anything for has none either, until a router calls for one.

Serve scales by calls in flight, which do not show demand here: routers coalesce requests into few calls and queue
the rest. So replicas report two loads, both in seconds of engine time per second: what they computed, and the demand at
the routers, predicted from the latency table and the recent pace of calls.
"""

from __future__ import annotations

import math
from typing import Any

from ray.serve.config import AutoscalingContext

from enginehouse.pools import control_loop, nodes

#: Names of the two loads in a replica's `record_autoscaling_stats`. BUSY is measured, but no more than the replicas can
#: compute; DEMAND is a prediction, but keeps rising when the engines are saturated.
BUSY, DEMAND = "busy", "demand"
#: Name of the number of models that a replica has, or may have, something to load for.
MODELS = "models"
#: What the policy remembers of a pool: whether its last replicas had nothing to load.
_EMPTY = "empty"
#: Hysteresis: a replica is removed only when the load of the remaining ones would be at most this share of the target.
SPARE = 0.9


class HardwareAndLoad:
    """Called by the Serve controller for a pool's target number of replicas; Serve applies the configured delays.

    `nodes` are the accelerator labels that the pool runs on, `target_busy` the load to have per replica. Without such a
    node the target is 0 unless the pool `starts_nodes`: a replica that cannot be placed would keep the application
    DEPLOYING. A pool scaled to zero starts a replica when a router calls its `wake`.
    """

    def __init__(
        self, nodes: list[str], min_replicas: int, max_replicas: int, target_busy: float, starts_nodes: bool = False
    ) -> None:
        self._nodes, self._starts_nodes = nodes, starts_nodes
        self._min, self._max, self._target_busy = min_replicas, max_replicas, target_busy

    def __call__(self, context: AutoscalingContext) -> tuple[int | float, dict[str, Any]]:
        wanted, state = self._wanted(context)
        loads = context.aggregated_metrics or {}
        is_asked = any(any(loads.get(name, {}).values()) for name in (BUSY, DEMAND))
        control_loop.of_this_process.note(is_asked or wanted != context.current_num_replicas)
        return wanted, state

    def _wanted(self, context: AutoscalingContext) -> tuple[int | float, dict[str, Any]]:
        is_called = int(context.total_num_requests > 0)
        is_here = nodes.count_with(self._nodes) > 0
        metrics = context.aggregated_metrics or {}
        state = context.policy_state or {}
        if is_called:
            state = {}
        elif context.current_num_replicas and (counts := metrics.get(MODELS)):
            # Averages over the look-back period: all of it counts.
            state = {} if any(counts.values()) else {_EMPTY: True}
        if not is_here and not self._starts_nodes:
            return 0, state
        if state.get(_EMPTY):
            return 0, state
        if self._min == self._max:
            return self._min, state
        if context.current_num_replicas == 0 or not is_here:
            # A pending replica makes Ray's cluster autoscaler start a node.
            return max(self._min, is_called), state
        seconds = max(sum(metrics.get(name, {}).values()) for name in (BUSY, DEMAND))
        return max(is_called, self.wanted(seconds, context.target_num_replicas)), state

    def wanted(self, seconds: float, now: int) -> int:
        """Target for a load of `seconds` of engine time per second, when the present target is `now`."""
        more, fewer = (self._bounded(math.ceil(seconds / target - 1e-9)) for target in self._targets)
        return more if more > now else min(now, fewer)

    @property
    def _targets(self) -> tuple[float, float]:
        return self._target_busy, self._target_busy * SPARE

    def _bounded(self, count: int) -> int:
        return min(self._max, max(self._min, count))
