"""Facts about nodes that Ray provides: this node's id and cores, and the number of nodes with some hardware."""

from __future__ import annotations

import time
from collections.abc import Iterable

import ray

from enginehouse.contract.config import ACCELERATOR_LABEL
from enginehouse.engines import hardware

#: Seconds for which the labels of live nodes are cached. Every pool's policy reads them in every round of Serve's
#: control loop (10 a second), and `ray.nodes()` takes 0.6 ms (Ray 2.60).
NODES_S = 0.5
_labels: tuple[float, list[str | None]] = (float("-inf"), [])


def own_id() -> str:
    """Id of the node that this process is on."""
    node: str = ray.get_runtime_context().get_node_id()
    return node


def threads_per_engine(num_cpus: float, engines_per_node: int) -> int:
    """Physical cores of this node divided by the engines of one kind that may run on it, at least 1.

    Those are at most `engines_per_node`, and no more than fit when each takes `num_cpus` logical CPUs.
    """
    me = own_id()
    cpus = next((node["Resources"].get("CPU", 1.0) for node in ray.nodes() if node["NodeID"] == me), 1.0)
    fits = int(cpus / num_cpus) if num_cpus else engines_per_node
    return max(1, hardware.physical_cores() // max(1, min(engines_per_node, fits)))


def count_with(accelerators: Iterable[str]) -> int:
    """Number of live nodes whose accelerator label is one of these, as of at most `NODES_S` seconds ago."""
    wanted = set(accelerators)
    return sum(1 for label in _labels_of_live_nodes() if label in wanted)


def _labels_of_live_nodes() -> list[str | None]:
    global _labels
    now = time.monotonic()
    if now - _labels[0] > NODES_S:
        _labels = now, [node["Labels"].get(ACCELERATOR_LABEL) for node in ray.nodes() if node["Alive"]]
    return _labels[1]
