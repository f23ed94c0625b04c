"""What engines of a job's own would find on the cluster's nodes: cores, libraries, and what others hold there."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from enginehouse.contract.config import ACCELERATOR_LABEL
from enginehouse.contract.manifest import EngineKind, Int8Products
from enginehouse.engines import hardware
from enginehouse.pools import ray_private

#: Seconds that a node may take to answer: it starts a process that imports this module.
ANSWER_S = 30.0
#: The installed distributions of which any has the library of an engine.
_LIBRARIES: Mapping[EngineKind, tuple[str, ...]] = {
    "onnxruntime-cpu": ("onnxruntime", "onnxruntime-gpu"),
    "onnxruntime-cuda": ("onnxruntime-gpu",),
    "openvino-cpu": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt-rtx"),
}


@dataclass(frozen=True, slots=True)
class OwnFacts:
    """What only a process of the node knows: physical cores, engine libraries, bytes of memory that are free."""

    cores: int
    engines: frozenset[EngineKind]
    int8_products: Int8Products
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A live node. `accelerator` is its label, None without one; CPUs and GPUs are logical, as Ray counts them.

    `serves`: replicas of the running application's pools are on it, which hold CPUs whether they compute or not.
    """

    id: str
    address: str
    accelerator: str | None
    cpus: float
    free_cpus: float
    gpus: float
    free_gpus: float
    serves: bool
    own: OwnFacts


def probe() -> OwnFacts:
    """The facts of this process's node."""
    installed = hardware.engine_versions()
    return OwnFacts(
        cores=hardware.physical_cores(),
        engines=frozenset(kind for kind, names in _LIBRARIES.items() if installed.keys() & set(names)),
        int8_products=hardware.int8_products(),
        memory_bytes=psutil.virtual_memory().available,
    )


def gather() -> tuple[list[NodeFacts], list[str]]:
    """Facts of every live node that engines may be on, and a sentence for each that is left out.

    Those have logical CPUs, answer within ANSWER_S, and are `placeable`.
    The process has to be connected. Its own node is not asked, which saves a small job the start of a process.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    here = ray.get_runtime_context().get_node_id()
    own, silent = _asked([node for node in nodes if node["NodeID"] != here])
    own |= {node["NodeID"]: probe() for node in nodes if node["NodeID"] == here}
    free, serving = ray_private.free_resources(), ray_private.nodes_of_pools()
    facts = [
        NodeFacts(
            id=node["NodeID"],
            address=node["NodeManagerAddress"],
            accelerator=node["Labels"].get(ACCELERATOR_LABEL),
            cpus=node["Resources"]["CPU"],
            free_cpus=free.get(node["NodeID"], {}).get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            free_gpus=free.get(node["NodeID"], {}).get("GPU", 0.0),
            serves=node["NodeID"] in serving,
            own=own[node["NodeID"]],
        )
        for node in nodes
        if node["NodeID"] in own
    ]
    facts, unlabelled = placeable(facts)
    return facts, [*silent, *unlabelled]


def placeable(facts: Sequence[NodeFacts]) -> tuple[list[NodeFacts], list[str]]:
    """Nodes with an accelerator label, as for the pools of serving; where no node has one, all of them."""
    labelled = [node for node in facts if node.accelerator is not None]
    if not labelled:
        return list(facts), []
    left_out = [node.address for node in facts if node.accelerator is None]
    return labelled, [f"no label {ACCELERATOR_LABEL}, left out: {', '.join(left_out)}"] if left_out else []


def _asked(nodes: Sequence[Mapping[str, Any]]) -> tuple[dict[str, OwnFacts], list[str]]:
    ask = ray.remote(num_cpus=0, max_retries=0)(probe)
    asked = {
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(): node
        for node in nodes
    }
    found, silent = {}, []
    until = time.monotonic() + ANSWER_S
    for reference, node in asked.items():
        try:
            found[node["NodeID"]] = ray.get(reference, timeout=max(0.0, until - time.monotonic()))
        except (RayError, ImportError, TimeoutError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            silent.append(f"node {node['NodeManagerAddress']} is left out, it could not look at itself: {reason[-1]}")
            ray.cancel(reference, force=True)
    return found, silent
