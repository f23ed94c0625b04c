"""Old path, kept for one release: live controllers and deployments name their request router by it.

They hold the old class by value, which calls `register` and `take` here with itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enginehouse.pools.nodes import count_with as nodes_with
from enginehouse.routing import replicas
from enginehouse.routing.ray_private import LiveReplicas

__all__ = ["LiveReplicas", "nodes_with", "register", "take"]


def register(router: Any) -> None:
    """Begin with the replicas of an old request router's deployment."""
    deployment = router._deployment_id
    router._published = replicas.register(deployment.app_name, deployment.name)


def take(router: Any, _: str, __: Mapping[str, Any]) -> None:
    """Receive all that Serve lists now; the old router calls this for each of them."""
    router._published.update({each.unique_id: listed.routing_stats for each, listed in router.curr_replicas.items()})
