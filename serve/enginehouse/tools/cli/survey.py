"""Asks every live node of the connected Ray cluster how it is. A node that does not answer is itself a finding."""

from __future__ import annotations

import threading
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from enginehouse.cluster import deploy, ray_private
from enginehouse.contract.config import ACCELERATOR_LABEL, AppConfig
from enginehouse.contract.config.access import is_loopback
from enginehouse.contract.errors import ConfigError
from enginehouse.tools.doctor import ANSWER_S, PORTS, Member, Survey, probe_from_worker

_HEAD = "node:__internal_head__"


def survey() -> Survey:
    """Probe every live node at once; takes at most about twice ANSWER_S."""
    app, http_port, reached_at, problem = _serve_facts()
    # A light module: nodes have to import it within the time they get.
    probe = ray.remote(num_cpus=0, max_retries=0)(probe_from_worker)
    asked = {
        probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            http_port
        ): node
        for node in sorted(ray.nodes(), key=lambda node: _HEAD not in node["Resources"])
        if node["Alive"]
    }
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
    for reference in silent:
        ray.cancel(reference, force=True)
    members = [_member(node, reference, reference in answered) for reference, node in asked.items()]
    return Survey(members, app.pools, problem, reached_at)


def _member(node: dict[str, Any], reference: Any, answered: bool) -> Member:
    found, problem = None, f"it did not answer within {ANSWER_S:g} s, though Ray counts it as live"
    if answered:
        try:
            found = ray.get(reference)
        except (RayError, ImportError) as error:
            # Also what an old or missing installation of this package on that node looks like.
            problem = f"it could not look at itself: {str(error).strip().splitlines()[-1]}"
    address = node["NodeManagerAddress"]
    host = node["NodeManagerHostname"]
    return Member(
        name=address if host == address else f"{address} ({host}, {node['NodeID'][:6]})",
        head=_HEAD in node["Resources"],
        label=node["Labels"].get(ACCELERATOR_LABEL),
        cpus=node["Resources"].get("CPU", 0.0),
        probe=found,
        problem=problem,
    )


def _serve_facts() -> tuple[AppConfig, int, str, str]:
    """The live application's config, Serve's HTTP port, where others may ask it without a token, and why that is not
    known: Serve's client waits for ever."""
    facts: list[tuple[AppConfig, int, str]] = []

    def ask() -> None:
        port = ray_private.http_port() or PORTS[0]
        try:
            facts.append((deploy.live_app(), port, _reached_at(port)))
        except ConfigError:
            facts.append((AppConfig(), port, ""))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    if not facts:
        return AppConfig(), PORTS[0], "", f"Serve's controller did not answer within {ANSWER_S:g} s"
    return *facts[0], ""


def _reached_at(port: int) -> str:
    if deploy.live_catalog().callers is not None:
        return ""
    host, grpc_port = ray_private.http_host() or "", ray_private.grpc_port()
    doors = [] if is_loopback(host) else [f"{host}:{port}"]
    # Routers listen for it on all addresses; those of a local server, whose node has none, answer only its own HAProxy.
    is_local = all(is_loopback(node["NodeManagerAddress"]) for node in ray.nodes())
    if grpc_port and not (doors or is_local):
        doors.append(f"port {grpc_port} (gRPC)")
    return " or ".join(doors)
