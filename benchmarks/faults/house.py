"""A cluster of three nodes that serves the model on two of them; its head has the routers, and the load goes there."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.integration.cluster import Cluster, Node, adopt_orphans, wait_for
from tests.integration.conftest import House as Served
from tests.integration.conftest import deploy_app

from benchmarks.faults import model, traffic
from enginehouse.contract.config import AppConfig, Catalog, ModelConfig, PoolConfig, RouterConfig

#: The GPU is a logical one. Routers ask for more than the pools' nodes have.
APP = AppConfig(
    pools={
        "gpu-pool": PoolConfig(engine="onnxruntime-cpu", nodes=("gpu",), num_gpus=1, threads=1),
        "cpu-pool": PoolConfig(engine="onnxruntime-cpu", threads=1),
    },
    router=RouterConfig(num_cpus=3),
)


@dataclass
class House(Served):
    """The running application, and what it can do."""

    @cached_property
    def capacity(self) -> float:
        """Answers a second of both pools."""
        return traffic.capacity(self.url)

    @cached_property
    def capacity_of_one(self) -> float:
        """Answers a second of the pool that no row harms."""
        return traffic.capacity(self.url, backend="cpu-pool")

    def restore(self, node: Node | None = None) -> None:
        """Put the nodes back, the killed or frozen `node` among them, and wait until both pools answer."""
        if node is not None and node in self.cluster.nodes:
            self.cluster.kill(node)
        if self.cpu not in self.cluster.nodes:
            self.cpu = self.cluster.add("cpu")
        if self.gpu not in self.cluster.nodes:
            self.gpu = self.cluster.add("gpu")
        self.wait_live(model.NAME, "gpu-pool", "cpu-pool", timeout=120)

    def victim(self, pool: str) -> int:
        """The process of the pool's replica."""
        (pid,) = self.cluster.replicas(pool)
        return pid


@contextlib.contextmanager
def running() -> Iterator[House]:
    """The house for as long as the context lasts."""
    adopt_orphans()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        model.publish(store)
        cluster = Cluster()
        try:
            with cluster.joined():
                catalog = Catalog(store=str(store), models=(ModelConfig(name=model.NAME, version="1"),))
                house = House(cluster, store, cluster.add("cpu"), cluster.add("gpu"), catalog)
                deploy_app(cluster, catalog, APP)
                house.restore()
                wait_for(house.healthy, 30, "HTTP")
                yield house
        finally:
            cluster.stop()
