"""Findings about the nodes of a cluster together, and about each one as a member of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from enginehouse.contract.config import ACCELERATOR_LABEL, PoolConfig
from enginehouse.contract.manifest import ACCELERATOR_OF
from enginehouse.tools.doctor.finding import Finding
from enginehouse.tools.doctor.node import judge_node, label_for

#: Seconds that a node may take to answer before its silence is the finding.
ANSWER_S = 10.0
_ACCELERATORS = frozenset(ACCELERATOR_OF.values())


@dataclass(frozen=True, slots=True)
class Member:
    """One live node as Ray knows it, and what `probe_node` found there (None: `problem` says why it did not answer).

    `cpus` are logical: a node with none runs no replica.
    """

    name: str
    head: bool
    label: str | None
    cpus: float
    probe: Mapping[str, Any] | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Survey:
    """All members; `pools` are those of the running application, or the default ones.

    `reached_at` is where other machines may ask the application without a token, if they may.
    """

    members: Sequence[Member]
    pools: Mapping[str, PoolConfig]
    serve_problem: str = ""
    reached_at: str = ""


def judge_member(member: Member) -> list[Finding]:
    """Findings about one node of a cluster."""
    if member.probe is None:
        remedy = "see its raylet's log; restart Ray there or take the node out of the cluster"
        return [Finding("node", "fail", member.problem, remedy)]
    return judge_node(member.probe, _label(member, member.probe), _runs_engines(member))


def judge_cluster(survey: Survey) -> list[Finding]:
    """Findings that no node shows alone."""
    members = survey.members
    probes = {member.name: member.probe for member in members if member.probe is not None}
    silent = len(members) - len(probes)
    found = [Finding("nodes", "ok", f"{len(members)} live" + (f", {silent} did not answer" if silent else ""))]
    if survey.serve_problem:
        remedy = "see the log of ServeController on the head; Ray restarts it when it has died"
        found.append(Finding("serve", "fail", survey.serve_problem, remedy))
    if survey.reached_at:
        text = f"whoever reaches {survey.reached_at} asks every model, without a token (--no-auth)"
        found.append(Finding("callers", "warn", text, "`enginehouse serve --tokens FILE`, or a firewall that is meant"))
    return [
        *found,
        *_pools(survey),
        *_flags(probes),
        *_versions(probes),
        *[
            _directory(gcs, len(members))
            for member in members
            if member.head and member.probe
            for gcs in member.probe["gcs"]
        ],
    ]


def _runs_engines(member: Member) -> bool:
    return member.label is not None and member.cpus > 0


def _label(member: Member, probe: Mapping[str, Any]) -> Finding:
    restart = f"restart Ray on this node with --labels {label_for(probe)}"
    devices = probe["gpus"]["devices"]
    if member.label is None and member.cpus == 0:
        return Finding("labels", "ok", "no label and no CPUs for Ray: no replica is placed here")
    if member.label is None:
        return Finding("labels", "warn", f"no label {ACCELERATOR_LABEL}: no pool is placed here", restart)
    carried = f"{ACCELERATOR_LABEL}={member.label}"
    if member.label not in _ACCELERATORS:
        return Finding("labels", "warn", f"{carried}: no pool knows this value", restart)
    if member.label == "gpu" and not devices:
        return Finding("labels", "fail", f"{carried}, but there is no GPU: {probe['gpus']['reason']}", restart)
    if member.label == "cpu" and devices:
        return Finding("labels", "warn", f"{carried}, but there is a GPU that no pool will use", restart)
    return Finding("labels", "ok", carried)


def _pools(survey: Survey) -> list[Finding]:
    """Whether the nodes that each pool asks for are there. GPU pools wait for their hardware, which is no fault."""
    labels = {member.label for member in survey.members}
    placed = [name for name, pool in survey.pools.items() if labels.intersection(pool.nodes)]
    remedy = f"restart Ray on some nodes with --labels {ACCELERATOR_LABEL}=cpu (or gpu)"
    if not placed:
        return [Finding("pools", "fail", "no node has a label that a pool asks for: nothing can be served", remedy)]
    found = [Finding("pools", "ok", f"there are nodes for {', '.join(placed)}")]
    for name, pool in survey.pools.items():
        if name not in placed:
            text = f"{name} stays at zero: no node is labelled {' or '.join(pool.nodes)}"
            is_gpu = ACCELERATOR_OF[pool.engine] == "gpu"
            found.append(Finding("pools", "ok", text) if is_gpu else Finding("pools", "warn", text, remedy))
    return found


def _flags(probes: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Flags that only some nodes have: a node without the raised limit refuses what the others send it."""
    lacking: dict[str, list[str]] = {}
    for name, probe in probes.items():
        for flag in {flag for raylet in probe["flags"] for flag in raylet["missing"]}:
            lacking.setdefault(flag, []).append(name)
    mixed = {flag: names for flag, names in sorted(lacking.items()) if len(names) < len(probes)}
    return [
        Finding(
            "flags",
            "fail",
            f"{flag} is set on some nodes, but not on {', '.join(names)}",
            "restart Ray there with it: a flag is read when Ray starts and must be the same everywhere",
        )
        for flag, names in mixed.items()
    ]


def _versions(probes: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    found = []
    for what in ("enginehouse", "ray", "python"):
        nodes: dict[str, list[str]] = {}
        for name, probe in probes.items():
            nodes.setdefault(probe["versions"].get(what, "no version"), []).append(name)
        if len(nodes) > 1:
            told = "; ".join(f"{version} on {', '.join(names)}" for version, names in sorted(nodes.items()))
            found.append(Finding("versions", "warn", f"{what} differs: {told}", "install the same on every node"))
    return found


def _directory(gcs: Mapping[str, Any], nodes: int) -> Finding:
    """Whether the cluster's directory (GCS), and with it what is served, survives the loss of the head."""
    if gcs["redis"]:
        return Finding("head", "ok", f"what the head knows is kept in Redis at {gcs['redis']}")
    if nodes == 1:
        return Finding("head", "ok", "one node: what it knows is in its memory and goes with it")
    remedy = "start the head with RAY_REDIS_ADDRESS=host:port; workers and requests then outlive its restart"
    return Finding("head", "warn", "what the head knows is only in its memory: if it goes, the cluster goes", remedy)
