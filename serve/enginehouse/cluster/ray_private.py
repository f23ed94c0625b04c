"""Private names of Ray that `cluster` uses: for Serve's live config, and what a job brings along.

Serve's public REST API has the live config too, but needs the dashboard, which a local cluster does not run.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray._private import services
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
from ray.job_config import JobConfig
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

#: Applications by name, as plain config data.
Applications = dict[str, dict[str, Any]]


class Job(JobConfig):  # type: ignore[misc]
    """A job whose workers do not import what lies in the folder that this process was started in, or its script's."""

    def _runtime_env_has_working_dir(self) -> bool:
        # Then Ray takes it that they have a folder of their own; otherwise it puts this one before all packages.
        return True


def live_applications() -> Applications:
    """The declaratively deployed applications; none while Serve does not run."""
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return {}
    configs = ray.get(client._controller.get_app_configs.remote())
    return {name: config.model_dump(exclude_unset=True) for name, config in configs.items()}


def put_applications(applications: Applications) -> None:
    """Deploy these applications without waiting for them; Serve deletes every other declarative one."""
    client = _get_global_client()
    document: dict[str, Any] = {"applications": list(applications.values())}
    target_capacity = client.get_serve_details().get("target_capacity")
    if target_capacity is not None:
        document["target_capacity"] = target_capacity
    client.deploy_apps(ServeDeploySchema(**document), _blocking=False)


def http_options() -> dict[str, Any]:
    """The HTTP options that Serve was started with."""
    options: dict[str, Any] = _get_global_client().get_serve_details()["http_options"]
    return options


def grpc_port() -> int:
    """The port of Serve's gRPC, 0 where it has no services."""
    options = _get_global_client().get_serve_details()["grpc_options"]
    return int(options["port"]) if options.get("grpc_servicer_functions") else 0


def http_port() -> int | None:
    """The port of Serve's HTTP; None while Serve does not run."""
    client = _get_global_client(raise_if_no_controller_running=False)
    return int(client.http_config.port) if client else None


def http_host() -> str | None:
    """The host that Serve's HTTP listens on; None while Serve does not run."""
    client = _get_global_client(raise_if_no_controller_running=False)
    return str(client.http_config.host) if client else None


@contextlib.contextmanager
def without_dashboard() -> Iterator[None]:
    """Have `ray.init` start no dashboard in the context, for a local cluster that asked for none.

    One is started all the same, for usage statistics: it takes 70 MiB, and even where those are off it asks the
    metadata services of three clouds which one this is.
    """
    started = services.start_api_server
    services.start_api_server = lambda *_, **__: (None, None)
    try:
        yield
    finally:
        services.start_api_server = started


def sends_token() -> bool:
    """Whether this process would send a token to a cluster: by the environment in which Ray was imported."""
    return bool(is_token_auth_enabled())


def token_headers() -> dict[str, str]:
    """The headers with the token that this process would send."""
    return dict(get_auth_headers_if_auth_enabled({}))


def found_address() -> str:
    """The cluster of this machine that Ray would connect to by itself, "" for none."""
    return services.find_bootstrap_address(None) or ""


def end_monitor() -> None:
    """End the process of the cluster that this one has started which asks clouds for nodes."""
    ray._private.worker._global_node.kill_monitor(check_alive=False)


def errors_as_records() -> None:
    """Have what Ray tells every driver, of nodes that died for instance, be records of its logger.

    Otherwise it is printed on stdout, which is for results, whatever `log_to_driver` says.
    """
    logger = logging.getLogger("ray")

    def record(data: dict[str, Any], ignore_prefix: bool) -> None:
        for line in data["lines"]:
            logger.warning("%s", line)

    ray._private.worker.print_to_stdstream = record


def session() -> str:
    """Name of the Ray session that this process is connected to (`session_DATE_TIME_PID`)."""
    return Path(ray._private.worker.global_worker.node.get_session_dir_path()).name
