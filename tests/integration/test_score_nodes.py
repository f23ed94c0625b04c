"""Batch scoring while machines die: `kill -9` of a node with all that is on it, and of the head."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import dataset, parquet
from tests.integration import counted_job
from tests.integration.cluster import Cluster, wait_for

#: More than a job gets done without its head, before it gives up.
ROWS, MANY = 12_000, 60_000


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Of its own, since its head is killed: the head, and a node of each label."""
    cluster = Cluster()
    try:
        cluster.add("cpu")
        cluster.add("gpu")
        yield cluster
    finally:
        cluster.stop()


def begun(cluster: Cluster, folder: Path, rows: int = ROWS) -> subprocess.Popen[str]:
    """A job that is some units far."""
    if not (folder / "in.parquet").exists():
        table = pa.table({"id": np.arange(rows), "x": np.arange(rows, dtype=np.float64)})
        parquet.write_table(table, folder / "in.parquet", row_group_size=counted_job.UNIT)
        (folder / "log").mkdir()
    paths = (str(folder / name) for name in ("in.parquet", "out", "log"))
    command = [sys.executable, "-m", "tests.integration.counted_job", cluster.address, *paths]
    job = subprocess.Popen(command, env=cluster.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    done = len(list((folder / "out" / "_job" / "units").glob("*.json")))
    both = lambda: len(list((folder / "log").iterdir())) >= 2  # noqa: E731
    lines = lambda: len(list((folder / "out" / "_job" / "units").glob("*.json")))  # noqa: E731
    wait_for(lambda: (both() and lines() > done + 3) or job.poll() is not None, 60, "some units are done")
    assert job.poll() is None, job.communicate()
    return job


def check(folder: Path, lost: int, rows: int = ROWS) -> None:
    """Every row is there once, and of each scorer that was lost no more than a unit was computed again."""
    found = dataset.dataset(folder / "out", format="parquet").to_table().sort_by("id")
    assert found.column("id").to_pylist() == list(range(rows))
    np.testing.assert_array_equal(found.column("output.y").to_numpy(), 2.0 * np.arange(rows))
    counts = counted_job.computed(folder / "log")
    assert set(counts) == set(range(rows))
    again = counts.total() - rows
    print(f"{again} rows computed again, {lost} scorers lost")
    assert again <= lost * counted_job.UNIT


@pytest.mark.slow
def test_a_node_that_dies_takes_only_what_its_scorers_had(cluster: Cluster, tmp_path: Path) -> None:
    job = begun(cluster, tmp_path)
    cluster.kill(next(node for node in cluster.nodes if node.ip == "127.0.0.3"))
    out, said = job.communicate(timeout=120)
    assert job.returncode == 0, said
    # Not even what Ray tells every driver of it: stdout is for results.
    assert out == ""
    check(tmp_path, 1)


@pytest.mark.slow
def test_a_job_whose_head_dies_says_so_and_the_next_cluster_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    job = begun(cluster, tmp_path, MANY)
    cluster.kill(cluster.head)
    _, said = job.communicate(timeout=150)
    assert job.returncode == 1
    assert said.splitlines()[-1].startswith(f"NoBackend: the head of the cluster ({cluster.address}) has not answered")
    assert "the same command goes on" in said
    assert "Traceback" not in said
    for node in list(cluster.nodes):
        cluster.kill(node)
    cluster.start_head()
    cluster.add("cpu")
    cluster.add("gpu")
    job = begun(cluster, tmp_path, MANY)
    _, said = job.communicate(timeout=150)
    assert job.returncode == 0, said
    check(tmp_path, 2, MANY)
