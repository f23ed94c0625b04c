"""Batch scoring with `enginehouse score`, as a job of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import dataset, parquet
from tests.integration.bundles import WIDTH
from tests.integration.conftest import House

ROWS = 1000


def check(target: Path, ids: list[object], x: np.ndarray) -> None:
    table = dataset.dataset(target).to_table().to_pydict()
    assert len(table["id"]) == ROWS
    assert sorted(map(str, table["id"])) == sorted(map(str, ids))
    position = {identity: index for index, identity in enumerate(table["id"])}
    y = np.array([table["y"][position[identity]] for identity in ids], np.float32)
    np.testing.assert_array_equal(y, x * 2)
    assert set(table["backend"]) <= {"gpu-pool", "cpu-pool"}


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


def test_without_room_scoring_refuses_with_figures(house: House, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.ones((4, WIDTH), np.float32))
    result = house.cluster.cli(
        *("score", "scale", str(tmp_path / "in.npz"), str(tmp_path / "out"), "--min-actors", "50"), timeout=60
    )
    assert result.returncode == 1
    assert "ConfigError" in result.stderr
    assert "needs 13 free logical CPUs" in result.stderr
    assert "of 11 are free" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("nowhere", "in.npz"), "nowhere"), (("scale", "absent.npz"), "absent.npz"), (("scale", "wrong.npz"), "'x'|x")],
)
def test_a_wrong_call_is_refused_by_name(house: House, tmp_path: Path, arguments: tuple[str, str], said: str) -> None:
    np.savez(tmp_path / "in.npz", x=np.ones((4, WIDTH), np.float32))
    np.savez(tmp_path / "wrong.npz", z=np.ones((4, WIDTH), np.float32))
    result = house.cluster.cli("score", arguments[0], str(tmp_path / arguments[1]), str(tmp_path / "out"))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert any(text in result.stderr for text in said.split("|"))


def test_a_row_of_another_length_stops_the_scoring_by_name(house: House, tmp_path: Path) -> None:
    rows = [[1.0] * WIDTH, [1.0] * (WIDTH + 1), [1.0] * WIDTH]
    parquet.write_table(pa.table({"id": [1, 2, 3], "x": rows}), tmp_path / "ragged.parquet")
    result = house.cluster.cli("score", "scale", str(tmp_path / "ragged.parquet"), str(tmp_path / "out"), timeout=150)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "InvalidInput" in result.stderr
    assert "'x'" in result.stderr


def test_ids_stay_what_they_are_and_numbers_that_do_not_fit_are_refused(house: House, tmp_path: Path) -> None:
    ids = pa.array([2**53 + 1, None, 2**53 + 3], pa.int64())
    x = [[float(at)] * WIDTH for at in range(3)]
    parquet.write_table(pa.table({"id": ids, "x": x}), tmp_path / "in.parquet")
    result = house.cluster.cli("score", "scale", str(tmp_path / "in.parquet"), str(tmp_path / "out"), timeout=150)
    assert result.returncode == 0, result.stderr
    written = dataset.dataset(tmp_path / "out").to_table()
    assert written.column("id").to_pylist() == ids.to_pylist()
    np.testing.assert_array_equal(np.array(written.to_pydict()["y"]), 2 * np.array(x))
    parquet.write_table(pa.table({"id": [1], "x": [[2**24 + 1] * WIDTH]}), tmp_path / "large.parquet")
    result = house.cluster.cli("score", "scale", str(tmp_path / "large.parquet"), str(tmp_path / "none"), timeout=150)
    assert result.returncode == 1
    assert (
        "InvalidInput: column 'x' has the value 16777217 in the row of id 1, which FP32 does not hold" in result.stderr
    )
