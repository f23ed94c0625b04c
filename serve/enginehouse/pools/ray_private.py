"""What pools need that Ray has not made public.

What it knows of nodes: the resources that are left on each, and which have replicas. And the rounds that Serve's
controller makes.
"""

from __future__ import annotations

import sys
from typing import Any

from ray._private import state

from enginehouse.contract.config import APP_NAME, ROUTER

#: How Serve names the actor of a replica: then application, deployment and a random part, with `#` between them.
_REPLICA = "SERVE_REPLICA::"


def free_resources() -> dict[str, dict[str, float]]:
    """What each live node has left of its logical resources, by node id."""
    free: dict[str, dict[str, float]] = state.available_resources_per_node()
    return free


def nodes_of_pools() -> set[str]:
    """Ids of the nodes on which replicas of our application's pools live: not of its routers."""
    ours, routers = f"{_REPLICA}{APP_NAME}#", f"{_REPLICA}{APP_NAME}#{ROUTER}#"
    return {
        actor["Address"]["NodeID"]
        for actor in state.actors(actor_state_name="ALIVE").values()
        if actor["Name"].startswith(ours) and not actor["Name"].startswith(routers)
    }


def set_control_loop(interval_s: float | None) -> None:
    """Have the controller, if it is this process, wait so long between its rounds; None: as Serve is configured."""
    # Not imported here: most processes with pools have nothing of Serve's.
    controller: Any = sys.modules.get("ray.serve._private.controller")
    if controller is not None:
        constants: Any = sys.modules["ray.serve._private.constants"]
        controller.CONTROL_LOOP_INTERVAL_S = interval_s or constants.CONTROL_LOOP_INTERVAL_S
