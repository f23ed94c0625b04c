"""cluster.yaml is what Ray's launcher takes, and its labels and flags are those that serving relies on."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

from enginehouse.contract.config import ACCELERATOR_LABEL, SERVING_ENV, AppConfig
from enginehouse.contract.manifest import ACCELERATOR_OF

ROOT = Path(__file__).parents[2]
WORKERS = ("cpu-worker", "gpu-worker")


@pytest.fixture
def document() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return document


@pytest.fixture
def cluster(document: dict[str, Any]) -> AutoscalingConfig:
    """As the autoscaler of the cluster reads it: defaults filled in, checked against Ray's schema."""
    return AutoscalingConfig(document, skip_content_hash=True)


def setup_commands(cluster: AutoscalingConfig) -> dict[str, list[str]]:
    workers = {name: cluster.get_worker_setup_commands(name) for name in WORKERS}
    return {"head": cluster.get_head_setup_commands(), **workers}


def test_it_has_a_head_and_two_kinds_of_workers(cluster: AutoscalingConfig) -> None:
    types = cluster.get_node_type_configs()
    assert set(types) == {"head", *WORKERS}
    assert all(types[name].min_worker_nodes <= types[name].max_worker_nodes > 0 for name in WORKERS)
    assert "CPU" in types["head"].resources and types["gpu-worker"].resources["GPU"] == 1


def test_ray_refuses_a_misspelt_field(document: dict[str, Any]) -> None:
    broken = copy.deepcopy(document)
    broken["available_node_types"]["gpu-worker"]["lables"] = {}
    with pytest.raises(jsonschema.ValidationError, match="lables"):
        AutoscalingConfig(broken, skip_content_hash=True)


def test_labels_are_those_that_pools_are_placed_by(cluster: AutoscalingConfig) -> None:
    labels = {name: cluster.get_node_labels(name) for name in WORKERS}
    assert labels == {"cpu-worker": {ACCELERATOR_LABEL: "cpu"}, "gpu-worker": {ACCELERATOR_LABEL: "gpu"}}
    assert {label[ACCELERATOR_LABEL] for label in labels.values()} == set(ACCELERATOR_OF.values())
    assert not cluster.get_node_labels("head")


def test_every_default_pool_fits_on_a_node_type(cluster: AutoscalingConfig) -> None:
    types = cluster.get_node_type_configs()
    for name, pool in AppConfig().pools.items():
        homes = [
            node
            for node in types.values()
            if node.labels.get(ACCELERATOR_LABEL) in pool.nodes
            and node.resources.get("CPU", 0) >= pool.num_cpus
            and node.resources.get("GPU", 0) >= pool.num_gpus
        ]
        assert homes, f"no node type of cluster.yaml can hold a replica of {name!r}"


@pytest.mark.parametrize("node", ["head", *WORKERS])
def test_every_node_gets_the_serving_flags(node: str, cluster: AutoscalingConfig, tmp_path: Path) -> None:
    writers = [command for command in setup_commands(cluster)[node] if ".enginehouse-env" in command]
    assert len(writers) == 1
    home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    (tmp_path / ".bashrc").touch()
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.touch(0o644)
    for _ in range(2):  # A node that is updated runs its setup again.
        subprocess.run(["bash", "-c", writers[0]], env=home, check=True)
    assert [path.stat().st_mode & 0o777 for path in (token.parent, token)] == [0o700, 0o600]
    assert (tmp_path / ".bashrc").read_text().count("enginehouse-env") == 1

    shown = subprocess.run(
        ["bash", "-c", ". ~/.enginehouse-env; env"], env=home, check=True, capture_output=True, text=True
    ).stdout
    found = dict(line.split("=", 1) for line in shown.splitlines() if line.startswith("RAY_"))
    # HAProxy's files are where no other user of the node can go.
    inside = tmp_path / ".enginehouse-haproxy"
    paths = [name for name, value in found.items() if Path(value) == inside or inside in Path(value).parents]
    assert len([found.pop(name) for name in paths]) == 5
    assert inside.stat().st_mode & 0o777 == 0o700
    limits = {"RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "30", "RAY_SERVE_HAPROXY_MAXCONN": "8192"}
    assert {name: found.pop(name) for name in limits} == limits
    assert found == {**SERVING_ENV, "RAY_AUTH_MODE": "token", "RAY_enable_autoscaler_v2": "1"}


def test_ray_starts_with_those_flags(document: dict[str, Any]) -> None:
    commands = document["head_start_ray_commands"] + document["worker_start_ray_commands"]
    assert all(command.startswith(". ~/.enginehouse-env;") for command in commands)


def test_every_node_installs_extras_that_exist_and_at_most_one_onnx_runtime(cluster: AutoscalingConfig) -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    extras = {
        node: {
            extra
            for found in re.findall(r"enginehouse\[([a-z,-]+)\]", " ".join(commands))
            for extra in found.split(",")
        }
        for node, commands in setup_commands(cluster).items()
    }
    assert all(names <= known.keys() for names in extras.values())
    assert {node: names & {"cpu", "gpu"} for node, names in extras.items()} == {
        "head": set(),
        "cpu-worker": {"cpu"},
        "gpu-worker": {"gpu"},
    }


def test_what_the_nodes_install_is_there_and_complete(document: dict[str, Any]) -> None:
    mounts = document["file_mounts"]
    # The token is in the home of whoever starts the cluster.
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    assert all((ROOT / source).exists() for source in mounts.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = [*packages, project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml"]
    for path in needed:
        assert any(Path(path).is_relative_to(source) for source in mounts.values()), (
            f"{path} is not copied to the nodes"
        )


def test_every_command_is_valid_shell(document: dict[str, Any], cluster: AutoscalingConfig) -> None:
    commands = [command for node in setup_commands(cluster).values() for command in node]
    commands += document["head_start_ray_commands"] + document["worker_start_ray_commands"]
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True)
