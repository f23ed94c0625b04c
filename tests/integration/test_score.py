"""Batch scoring with `enginehouse score` through the running application, whatever is killed meanwhile."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from pyarrow import dataset, parquet
from tests.integration.bundles import CRASHES, RAISES, WIDTH, publish_poisonous
from tests.integration.cluster import wait_for
from tests.integration.conftest import House

ROWS = 1000


def check(target: Path, ids: list[object], x: np.ndarray) -> None:
    table = dataset.dataset(target).to_table().to_pydict()
    assert len(table["id"]) == len(ids)
    assert sorted(map(str, table["id"])) == sorted(map(str, ids))
    position = {identity: index for index, identity in enumerate(table["id"])}
    y = np.array([table["output.y"][position[identity]] for identity in ids], np.float32)
    np.testing.assert_array_equal(y, x * 2)
    assert set(table["backend"]) <= {"gpu-pool", "cpu-pool"}
    assert set(table["model_version"]) == {"1"}


@pytest.mark.parametrize("kind", ["parquet", "npz"])
def test_every_row_is_scored_once(house: House, tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((ROWS, WIDTH), dtype=np.float32)
    ids: list[object]
    if kind == "parquet":
        ids = [f"row-{number}" for number in rng.permutation(ROWS)]
        parquet.write_table(pa.table({"id": ids, "x": x.tolist()}), tmp_path / "in.parquet", row_group_size=300)
    else:
        ids = [int(number) for number in rng.permutation(ROWS)]
        np.savez(tmp_path / "in.npz", id=np.array(ids), x=x)
    target = tmp_path / "out"
    result = house.cluster.cli("score", "scale", str(tmp_path / f"in.{kind}"), str(target), timeout=150)
    assert result.returncode == 0, result.stderr
    assert f"{ROWS} rows in" in result.stdout
    check(target, ids, x)


def files(folder: Path, count: int, rows: int) -> tuple[list[object], np.ndarray]:
    """Input of so many files, each of which is a unit; all ids and values."""
    folder.mkdir()
    x = np.random.default_rng(1).standard_normal((count * rows, WIDTH), dtype=np.float32)
    ids = list(range(len(x)))
    for at in range(count):
        part = slice(at * rows, (at + 1) * rows)
        parquet.write_table(pa.table({"id": ids[part], "x": x[part].tolist()}), folder / f"{at:03d}.parquet")
    return ids, x  # type: ignore[return-value]


def begun(house: House, target: Path, *arguments: str, lines: int) -> subprocess.Popen[str]:
    """A job that has so many units done, and more to do."""
    job = house.cluster.popen("score", "scale", *arguments)
    wait_for(lambda: len(list((target / "_job" / "units").glob("*.json"))) >= lines, 60, "some units are done")
    assert job.poll() is None
    return job


def scorers() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if line and line[0].startswith("ray::HostedScorer"):
            found.append(process)
    return found


def test_whoever_is_killed_every_row_is_scored_once(house: House, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    ids, x = files(source, 60, 400)
    job = begun(house, target, str(source), str(target), lines=3)
    scorers()[0].kill()
    done = len(list((target / "_job" / "units").glob("*.json")))
    wait_for(lambda: len(list((target / "_job" / "units").glob("*.json"))) > done + 2, 60, "it goes on")
    job.send_signal(signal.SIGKILL)
    job.wait()
    before = {path.name: path.stat().st_mtime_ns for path in (target / "_job" / "units").glob("*.json")}
    result = house.cluster.cli("score", "scale", str(source), str(target), timeout=150)
    assert result.returncode == 0, result.stderr
    assert "going on: " in result.stderr
    check(target, ids, x)
    now = {path.name: path.stat().st_mtime_ns for path in (target / "_job" / "units").glob("*.json")}
    # What was done was not done again; what the killed driver's scorers still finished may be among it.
    assert len(now) == 60
    assert all(now[name] == at for name, at in before.items())


def test_an_interrupted_job_ends_with_its_units_and_says_how_to_go_on(house: House, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    ids, x = files(source, 40, 400)
    job = begun(house, target, str(source), str(target), lines=2)
    job.send_signal(signal.SIGINT)
    _, said = job.communicate(timeout=60)
    assert job.returncode == 130, said
    assert "the same command goes on" in said
    assert "Traceback" not in said
    result = house.cluster.cli("score", "scale", str(source), str(target), timeout=150)
    assert result.returncode == 0, result.stderr
    check(target, ids, x)


def test_without_room_scoring_refuses_with_figures(house: House, tmp_path: Path) -> None:
    files(tmp_path / "in", 60, 2)
    result = house.cluster.cli(
        *("score", "scale", str(tmp_path / "in"), str(tmp_path / "out"), "--min-actors", "50", "--max-actors", "50"),
        timeout=60,
    )
    assert result.returncode == 1
    assert "ConfigError" in result.stderr
    assert "needs 12.5 free logical CPUs" in result.stderr
    assert "of 11 are free" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("nowhere", "in.npz"), "nowhere"), (("scale", "absent.npz"), "absent.npz"), (("scale", "wrong.npz"), "'x'")],
)
def test_a_wrong_call_is_refused_by_name(house: House, tmp_path: Path, arguments: tuple[str, str], said: str) -> None:
    np.savez(tmp_path / "in.npz", x=np.ones((4, WIDTH), np.float32))
    np.savez(tmp_path / "wrong.npz", z=np.ones((4, WIDTH), np.float32))
    result = house.cluster.cli("score", arguments[0], str(tmp_path / arguments[1]), str(tmp_path / "out"))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert said in result.stderr


def rejected(target: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for path in (target / "_rejected").glob("*.jsonl") for line in path.read_text().splitlines()
    ]


def test_rows_that_cannot_be_scored_are_put_apart_and_the_exit_code_says_so(house: House, tmp_path: Path) -> None:
    ids = pa.array([2**53 + 1, None, 2**53 + 3, 4, 5], pa.int64())
    x: list[list[float]] = [[float(at)] * WIDTH for at in range(5)]
    x[3], x[4] = [1.0] * (WIDTH + 1), [1e300] * WIDTH
    parquet.write_table(pa.table({"id": ids, "x": x}), tmp_path / "in.parquet")
    result = house.cluster.cli("score", "scale", str(tmp_path / "in.parquet"), str(tmp_path / "out"), timeout=150)
    assert result.returncode == 3, result.stderr
    assert "2 rows rejected (1 cast, 1 shape)" in result.stderr
    written = dataset.dataset(tmp_path / "out").to_table()
    assert written.column("id").to_pylist() == ids.to_pylist()[:3]
    np.testing.assert_array_equal(np.array(written.to_pydict()["output.y"]), 2 * np.array(x[:3]))
    assert {each["id"]: each["kind"] for each in rejected(tmp_path / "out")} == {4: "shape", 5: "cast"}


@pytest.mark.slow
def test_a_row_that_kills_its_engine_is_found_and_rejected(house: House, tmp_path: Path) -> None:
    """ONNX Runtime raises for one row, and another one ends its process: -2**63 / -1 (see `bundles`)."""
    publish_poisonous(house.store, "deadly")
    rows = [[at + 100] for at in range(200)]
    rows[31], rows[77] = [RAISES], [CRASHES]
    parquet.write_table(pa.table({"id": range(200), "x": rows}), tmp_path / "in.parquet")
    arguments = (str(tmp_path / "in.parquet"), str(tmp_path / "out"), "--via", "engines", "--store", str(house.store))
    result = house.cluster.cli("score", "deadly", *arguments, timeout=250)
    assert result.returncode == 3, result.stderr
    assert {each["id"]: each["kind"] for each in rejected(tmp_path / "out")} == {31: "refused", 77: "engine"}
    written = dataset.dataset(tmp_path / "out").to_table()
    assert written.column("id").to_pylist() == [at for at in range(200) if at not in (31, 77)]
