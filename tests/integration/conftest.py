"""One live house for all tests: three nodes, two pools, Router on the head; nothing of it may outlive them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.integration import bundles
from tests.integration.cluster import Cluster, Node, adopt_orphans, descendants, describe, wait_for

from enginehouse.contract.config import AppConfig, Catalog, ModelConfig, PoolConfig, RouterConfig

#: The GPU is a logical one: Ray places by it, while the engine behind it computes on the CPU. The Router asks for more
#: than the pools' nodes have, so it is on the head, which no test kills.
APP = AppConfig(
    pools={
        "gpu-pool": PoolConfig(engine="onnxruntime-cpu", nodes=("gpu",), num_gpus=1, threads=1, unload_after_s=1),
        "cpu-pool": PoolConfig(engine="openvino-cpu", nodes=("cpu",), threads=1, unload_after_s=1),
    },
    router=RouterConfig(num_cpus=3),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.integration)


@dataclass
class House:
    """The running application, its cluster and its store."""

    cluster: Cluster
    store: Path
    cpu: Node
    gpu: Node
    catalog: Catalog

    @property
    def url(self) -> str:
        return self.cluster.url

    def publish(self, name: str, version: str, factor: float, **options: Any) -> Path:
        return bundles.publish(self.store, name, version, factor, **options)

    def status(self) -> dict[str, Any]:
        from enginehouse.faces.python.client import Client

        return Client(is_embedded=False).status()

    def model(self, name: str) -> dict[str, Any]:
        return next(entry for entry in self.status()["models"] if entry["name"] == name)

    def state(self, name: str, pool: str) -> str:
        """State of one model's backend, for instance `live` or `no-hardware`."""
        found = {backend["pool"]: backend["state"] for backend in self.model(name)["backends"]}
        return str(found.get(pool, "unknown"))

    def wait_live(self, name: str, *pools: str, timeout: float = 60) -> None:
        """Until the model answers on these pools."""
        for pool in pools:
            wait_for(lambda pool=pool: self.state(name, pool) == "live", timeout, f"{name} live on {pool}")  # type: ignore[misc]

    def add(self, name: str, version: str, timeout: float = 60, **options: Any) -> None:
        """Change the catalog and wait until every pool with hardware answers for it."""
        from enginehouse.cluster import deploy

        deploy.add_model(ModelConfig(name=name, version=version, **options))
        wait_for(lambda: self._serves(name, version), timeout, f"{name}@{version} served")

    def remove(self, name: str) -> None:
        from enginehouse.cluster import deploy

        deploy.remove_model(name)
        gone = lambda: name not in [entry["name"] for entry in self.status()["models"]]  # noqa: E731
        wait_for(gone, 30, f"{name} removed")

    def _serves(self, name: str, version: str) -> bool:
        entry = next((entry for entry in self.status()["models"] if entry["name"] == name), None)
        return entry is not None and entry["serving"] == version and entry["state"] == "ready"

    def healthy(self) -> bool:
        return httpx.get(f"http://{self.url}/v2/health/ready", timeout=10).status_code == 200


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Head, CPU node and node with a logical GPU; this process is a driver of it."""
    adopt_orphans()
    before = set(descendants())
    cluster = Cluster()
    try:
        with cluster.joined():
            yield cluster
    finally:
        cluster.stop()
    left = [process for pid, process in descendants().items() if pid not in before]
    assert not left, f"the cluster left processes behind: {describe(left)}"


@pytest.fixture(scope="session")
def house(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> House:
    """`scale` (x2 in version 1, x3 in 2, x10 in 3) and `other` (x7), deployed and warm on both pools."""
    store = tmp_path_factory.mktemp("store")
    for version, factor in (("1", 2), ("2", 3), ("3", 10)):
        bundles.publish(store, "scale", version, factor)
    bundles.publish(store, "other", "1", 7, bundles.CPU_POOL_FIRST)
    cpu, gpu = cluster.add("cpu"), cluster.add("gpu")
    catalog = Catalog(
        store=str(store), models=(ModelConfig(name="scale", version="1"), ModelConfig(name="other", version="1"))
    )
    deploy_app(cluster, catalog)
    house = House(cluster, store, cpu, gpu, catalog)
    for name in ("scale", "other"):
        house.wait_live(name, "gpu-pool", "cpu-pool")
    wait_for(house.healthy, 30, "HTTP")
    return house


def deploy_app(cluster: Cluster, catalog: Catalog, app: AppConfig = APP) -> None:
    """Deploy and wait until the Router answers."""
    from ray import serve

    from enginehouse.cluster import deploy
    from enginehouse.contract.config import GRPC_OPTIONS
    from enginehouse.faces.python.client import Client

    # All nodes have one machine's ports: one proxy for them all.
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": "127.0.0.1", "port": cluster.http_port},
        grpc_options={"port": cluster.grpc_port, **GRPC_OPTIONS},
    )
    deploy.deploy(app, catalog, "127.0.0.1", cluster.http_port)

    def answers() -> bool:
        try:
            return bool(Client(is_embedded=False).status())
        except Exception:
            return False

    wait_for(answers, 60, "the Router answers")


@pytest.fixture
def scale(house: House) -> Iterator[str]:
    """The model `scale` in version 1, put back afterwards."""
    yield "scale"
    if house.model("scale")["serving"] != "1":
        house.add("scale", "1")
