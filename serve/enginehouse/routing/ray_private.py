"""What routing needs of Ray that is not public: the replicas that Serve broadcasts, and the job of a process."""

from __future__ import annotations

import threading
from typing import Any

import ray
from ray._private import auto_init_hook, client_mode_hook
from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.handle import DeploymentHandle


class LiveReplicas(PowerOfTwoChoicesRequestRouter):  # type: ignore[misc]
    """Serve's own request router, which also hands the replicas of its pool to `enginehouse.routing.replicas`."""

    def initialize_state(self, **_: object) -> None:
        # Serve pickles this class by value, so the registry must be reached through the module's name.
        from enginehouse.routing import replicas

        deployment = self._deployment_id
        self.known = replicas.register(deployment.app_name, deployment.name)

    def update_replicas(self, replicas: list[Any]) -> None:
        """Receive Serve's new list."""
        super().update_replicas(replicas)
        self.known.update({each.unique_id: listed.routing_stats for each, listed in self.curr_replicas.items()})


def watch(handle: DeploymentHandle) -> None:
    """Start receiving the replicas of a handle's deployment, which Serve otherwise does at the first call.

    Call it on the event loop that routes: Serve then reports replicas there. `SERVING_ENV` asks Serve for a loop in a
    thread of its own, for the sake of users' handles; here that thread would compete with every request.
    """
    if not handle.is_initialized:
        handle._init(_run_router_in_separate_loop=False)


def start_no_ray_in_the_background() -> None:
    """From now on no thread but the main one starts a Ray where there is none; calls of Ray fail there instead.

    Threads of Serve and of a local router go on for a moment after `ray.shutdown()`. A call of theirs would start a
    cluster that nobody asked for, and that nobody ends (Ray 2.60 starts one at the first call of many).
    """
    for module in (auto_init_hook, client_mode_hook):
        module.auto_init_ray = _start_if_asked


_start = auto_init_hook.auto_init_ray


def _start_if_asked() -> None:
    if threading.current_thread() is threading.main_thread():
        _start()


def job() -> str:
    """Id of the Ray job of this process, empty while there is none. The public call would start Ray then."""
    worker = ray._private.worker.global_worker
    return worker.current_job_id.hex() if worker.connected else ""
