"""Ray's cluster autoscaler starts the node that a idle pool wants, and takes it back: real nodes of one machine."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tests.integration import bundles
from tests.integration.bundles import WIDTH
from tests.integration.cluster import NODE_TYPES, Cluster, adopt_orphans, descendants, describe, wait_for
from tests.integration.load import body, value

from enginehouse.contract.config import ACCELERATOR_LABEL, SERVING_ENV

pytestmark = pytest.mark.slow

X = np.arange(WIDTH, dtype=np.float32).reshape(1, WIDTH)
HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
#: Seconds after which the autoscaler takes back a node that nobody uses.
IDLE_S = 9
FLAGS = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
    # On loopback, which is for one machine what an interface is for several.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
DEPLOY = """
import json, os, sys
import ray
from ray import serve
from enginehouse.cluster import deploy
from enginehouse.contract.config import AppConfig, Catalog

app, catalog, port = json.loads(sys.argv[1])
ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR")
serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
deploy.deploy(AppConfig.parse(app), Catalog.parse(catalog), "127.0.0.1", port)
"""
LABELS = """
import json, os
import ray
ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR")
print(json.dumps([node["Labels"] for node in ray.nodes() if node["Alive"]]))
"""


class Autoscaled(Cluster):
    """A head whose autoscaler starts nodes of cluster.yaml's types on this machine, one with a CPU label at once."""

    def start_head(self) -> Any:
        config = self.folder / "autoscaling.json"
        config.write_text(json.dumps(self._config()))
        self.arguments = ("--autoscaling-config", str(config))
        return super().start_head()

    def accelerators(self) -> Counter[str]:
        """Live nodes by their label."""
        said = self.run(sys.executable, "-c", LABELS)
        assert said.returncode == 0, said.stderr
        return Counter(labels.get(ACCELERATOR_LABEL, "") for labels in json.loads(said.stdout.splitlines()[-1]))

    def _config(self) -> dict[str, Any]:
        lists = ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands")
        commands = ("head_setup_commands", "worker_setup_commands", "head_start_ray_commands")
        provider = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
        types = {
            name: {
                "resources": {"CPU": 2, "GPU": NODE_TYPES[name]["resources"].get("GPU", 0)},
                "labels": NODE_TYPES[name]["labels"],
                "node_config": {},
                "min_workers": int(name == "cpu-worker"),
                "max_workers": 1,
            }
            for name in ("cpu-worker", "gpu-worker")
        }
        return {
            "cluster_name": "nodes-of-one-machine",
            "max_workers": 4,
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": IDLE_S / 60,
            "provider": {
                "type": "external",
                "module": provider,
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
                "launch_multiple": True,
                "head_node_id": HEAD,
                "gcs_address": self.address,
            },
            "head_node_type": "ray.head.default",
            "available_node_types": {
                "ray.head.default": {"resources": {"CPU": self._cpus}, "node_config": {}, "max_workers": 0},
                **types,
            },
            **{name: {} for name in ("docker", "auth", "file_mounts")},
            **{name: [] for name in (*lists, *commands, "worker_start_ray_commands")},
            "file_mounts_sync_continuously": False,
        }


@pytest.fixture
def cluster() -> Iterator[Autoscaled]:
    adopt_orphans()
    before = set(descendants())
    cluster = Autoscaled(SERVING_ENV | FLAGS)
    try:
        yield cluster
    finally:
        cluster.stop()
        left = [process for pid, process in descendants().items() if pid not in before]
        for process in left:
            process.kill()
        assert not left, f"the cluster left processes behind: {describe(left)}"


def test_a_pool_that_starts_nodes_has_one_while_somebody_wants_it(cluster: Autoscaled, tmp_path: Path) -> None:
    bundles.publish(tmp_path, "scale", "1", 2)
    gpu = {"engine": "onnxruntime-cpu", "nodes": ["gpu"], "num_gpus": 1, "threads": 1, "min_replicas": 0}
    app = {
        "pools": {
            "gpu-pool": gpu | {"starts_nodes": True, "downscale_delay_s": 4},
            "cpu-pool": {"engine": "openvino-cpu", "threads": 1},
        }
    }
    catalog = {"store": str(tmp_path), "models": [{"name": "scale", "version": "1"}]}
    wait_for(lambda: cluster.accelerators()["cpu"] == 1, 60, "the node that is always wanted")
    told = json.dumps([app, catalog, cluster.http_port])
    deployed = cluster.run(sys.executable, "-c", DEPLOY, told, timeout=120)
    assert deployed.returncode == 0, deployed.stderr

    backends: Counter[str] = Counter()

    def ask() -> bool:
        """Whether it is answered, rightly."""
        try:
            answer = httpx.post(f"http://{cluster.url}/v2/models/scale/infer", json=body(X), timeout=30)
        except httpx.TransportError as error:
            assert not backends, error
            return False
        if answer.status_code != 200:
            assert not backends, answer.text
            return False
        np.testing.assert_array_equal(value(answer), X * 2)
        backends[answer.headers["enginehouse-backend"]] += 1
        return True

    wait_for(ask, 90, "the CPU pool answers")
    began = time.monotonic()
    wait_for(lambda: ask() and backends["gpu-pool"] > 5, 90, "a node is started for the GPU pool, which takes over")
    print(f"took over after {time.monotonic() - began:.1f} s, {backends}")
    assert backends["cpu-pool"], "meanwhile the CPU pool answered"
    assert cluster.accelerators()["gpu"] == 1

    began = time.monotonic()
    wait_for(lambda: not cluster.accelerators()["gpu"], 120, "the node is given back", every=1.0)
    print(f"given back after {time.monotonic() - began:.1f} s")
    assert ask()
