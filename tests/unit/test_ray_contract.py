"""The Ray names that are not public and that the files called ray_private.py rely on, in the pinned version."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

NAMES = [
    # routing: LiveReplicas
    ("ray.serve._private.request_router.pow_2_router", "PowerOfTwoChoicesRequestRouter.update_replicas"),
    ("ray.serve._private.request_router.pow_2_router", "PowerOfTwoChoicesRequestRouter.initialize_state"),
    ("ray.serve._private.request_router.pow_2_router", "PowerOfTwoChoicesRequestRouter.curr_replicas"),
    ("ray.serve._private.request_router.replica_wrapper", "RunningReplica.routing_stats"),
    ("ray.serve._private.request_router.replica_wrapper", "RunningReplica.replica_id"),
    # routing: watch
    ("ray.serve.handle", "DeploymentHandle.is_initialized"),
    ("ray.serve.handle", "DeploymentHandle._init"),
    # routing: job
    ("ray._private.worker", "Worker.connected"),
    ("ray._private.worker", "Worker.current_job_id"),
    # autoscaling
    ("ray.serve.config", "AutoscalingContext.aggregated_metrics"),
    ("ray.serve.config", "AutoscalingContext.total_num_requests"),
    # cluster
    ("ray.job_config", "JobConfig._runtime_env_has_working_dir"),
    ("ray._private.node", "Node.get_session_dir_path"),
    ("ray._private.node", "Node.kill_monitor"),
    ("ray._private.services", "start_api_server"),
    ("ray._private.services", "find_bootstrap_address"),
    ("ray._private.authentication.authentication_utils", "is_token_auth_enabled"),
    ("ray._private.authentication.http_token_authentication", "get_auth_headers_if_auth_enabled"),
    ("ray._private.state", "available_resources_per_node"),
    ("ray._private.state", "actors"),
    ("ray.serve.context", "_get_global_client"),
    ("ray.serve._private.client", "ServeControllerClient.get_serve_details"),
    ("ray.serve._private.client", "ServeControllerClient.deploy_apps"),
    ("ray.serve._private.controller", "ServeController.get_app_configs"),
    ("ray.serve.schema", "ServeDeploySchema"),
]


def find(module: str, path: str) -> Any:
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize(("module", "path"), NAMES, ids=[path for _, path in NAMES])
def test_the_name_exists(module: str, path: str) -> None:
    assert find(module, path) is not None


def source(module: str, path: str) -> str:
    return inspect.getsource(find(module, path))


def test_deploying_without_waiting_is_possible() -> None:
    parameters = inspect.signature(find("ray.serve._private.client", "ServeControllerClient.deploy_apps")).parameters
    assert "_blocking" in parameters


def test_the_client_can_be_asked_for_without_starting_anything() -> None:
    parameters = inspect.signature(find("ray.serve.context", "_get_global_client")).parameters
    assert "raise_if_no_controller_running" in parameters


def test_a_request_router_knows_its_deployment() -> None:
    assert "self._deployment_id =" in source(
        "ray.serve._private.request_router.request_router", "RequestRouter.__init__"
    )


def test_a_replica_that_ends_awaits_what_its_class_has_for_that() -> None:
    assert "self._callable.__del__" in source("ray.serve._private.replica", "UserCallableWrapper.call_destructor")


def test_a_batched_function_can_be_retuned_live() -> None:
    from ray import serve

    @serve.batch(max_batch_size=2, batch_wait_timeout_s=0)
    async def batched(items: list[int]) -> list[int]:
        return items

    assert callable(batched.set_max_batch_size)
    assert callable(batched.set_batch_wait_timeout_s)


def test_request_routing_options_are_known() -> None:
    from ray.serve.config import RequestRouterConfig

    assert {
        "request_router_class",
        "request_routing_stats_period_s",
        "request_routing_stats_timeout_s",
    } <= RequestRouterConfig.model_fields.keys()


def test_the_environment_that_serving_sets_is_still_read() -> None:
    from enginehouse.contract.config import SERVING_ENV

    constants = inspect.getsource(importlib.import_module("ray.serve._private.constants"))
    assert [name for name in SERVING_ENV if name not in constants] == []


def test_what_a_local_cluster_sets_for_haproxy_is_still_read() -> None:
    from enginehouse.cluster import haproxy

    constants = inspect.getsource(importlib.import_module("ray.serve._private.constants"))
    wanted = haproxy.environment(Path("/tmp/eh-x")) | haproxy.wrapped("127.0.0.1")
    assert [name for name in wanted if name.startswith("RAY_") and name not in constants] == []
    # The wrapper finds the configuration after `-f`, and the pid of what it becomes is the one that Ray looks for.
    start = source("ray.serve._private.haproxy", "HAProxyApi._start_and_wait_for_haproxy")
    assert '"-f", self.config_file_path' in start and "create_subprocess_exec" in start


def test_a_replica_is_known_by_the_name_of_its_actor() -> None:
    from ray.serve._private.common import DeploymentID, ReplicaID

    from enginehouse.pools import ray_private

    name = ReplicaID("abc", DeploymentID("onnxruntime-cpu", "enginehouse")).to_full_id_str()
    assert name == f"{ray_private._REPLICA}enginehouse#onnxruntime-cpu#abc"
    assert {'"Name"', '"NodeID"'} <= set(
        source("ray._private.state", "GlobalState._gen_actor_info").replace(":", " ").split()
    )
