"""A whole job in one process: every row once, scored or rejected; what was done is done; what changed is said."""

from __future__ import annotations

import decimal
import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from enginehouse.contract.errors import ConfigError, EngineUnavailable, InferenceFailed, InvalidInput
from enginehouse.contract.tensors import Domain, Tensors
from enginehouse.faces.scoring.mapping import Mapped
from enginehouse.faces.scoring.readers import Limits
from enginehouse.faces.scoring.results.plain import values

from .scoring_jobs import ByFunction, results, same, score, signature, write

FLAT = signature(np.float32)


def rejected(target: Path) -> list[dict[str, Any]]:
    files = sorted((target / "_rejected").glob("*.jsonl")) if (target / "_rejected").exists() else []
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


IDS: dict[str, pa.Array] = {
    "whole": pa.array([2**53 + 1, None, -(2**63)], pa.int64()),
    "unsigned": pa.array([2**64 - 1, 0, None], pa.uint64()),
    "tiny": pa.array([-1, None, 1], pa.int8()),
    "half": pa.array(np.array([1, np.nan, 3], np.float16)),
    "float": pa.array([float("nan"), -0.0, None]),
    "text": pa.array(["a", "", None]),
    "large text": pa.array(["ü", None, "b"], pa.large_string()),
    "bytes": pa.array([b"\xff", b"", None]),
    "view": pa.array(["a", None, "c"]).dictionary_encode(),
    "uuid": pa.array([uuid.UUID(int=at).bytes for at in range(3)], pa.binary(16)),
    "uuid type": pa.ExtensionArray.from_storage(
        pa.uuid(), pa.array([bytes([at] * 16) for at in range(3)], pa.binary(16))
    ),
    "decimal": pa.array([decimal.Decimal("12345678901234567890.5"), None, decimal.Decimal(1)], pa.decimal128(30, 1)),
    "decimal256": pa.array([decimal.Decimal(10) ** 60, None, decimal.Decimal(1)], pa.decimal256(70, 2)),
    "time": pa.array([1, 2**40, None], pa.timestamp("ns", "Europe/Berlin")),
    "date": pa.array([1, None, 3], pa.date32()),
    "of day": pa.array([1, None, 3], pa.time64("us")),
    "duration": pa.array([1, None, 3], pa.duration("s")),
    "truth": pa.array([True, None, False]),
    "struct": pa.array([{"a": 2**53 + 1}, None, {"a": None}]),
    "list": pa.array([[2**53 + 1], None, []]),
    "nothing": pa.nulls(3),
}


@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize("kind", IDS)
def test_ids_of_every_type_come_out_as_they_went_in(tmp_path: Path, kind: str, form: str) -> None:
    source = write(tmp_path / "in.parquet", 2, id=IDS[kind], x=pa.array([0, 1, 2], pa.float32()), more=IDS[kind])
    before = parquet.read_table(source)
    score(source, tmp_path / "out", FLAT, mapped=Mapped(keep=("more",)), target_format=form)
    after = results(tmp_path / "out", form)
    for name in ("id", "more"):
        assert after.column(name).type == before.column(name).type
        assert after.column(name).combine_chunks().equals(before.column(name).combine_chunks()) or kind in (
            "float",
            "half",
        )
        assert repr(values(after.column(name))) == repr(values(before.column(name)))
    assert after.column("output.y").to_pylist() == [0, 1, 2]


NANOSECONDS = {
    "point": (pa.timestamp("ns"), ["1970-01-01 00:00:00.000000001", None, "1970-01-01 00:18:19.511627776"]),
    "of day": (pa.time64("ns"), ["00:00:00.000000001", None, "00:18:19.511627776"]),
    "length": (pa.duration("ns"), [1, None, 2**40]),
}


@pytest.mark.parametrize("kind", NANOSECONDS)
def test_nanoseconds_are_told_without_pandas(tmp_path: Path, kind: str) -> None:
    dtype, told = NANOSECONDS[kind]
    ids = pa.array([1, None, 2**40], dtype)
    more = pa.array([[1], [], None], pa.list_(dtype))
    write(tmp_path / "in.parquet", 2, id=ids, x=pa.array([0, 1, None], pa.float32()), more=more)
    score(tmp_path / "in.parquet", tmp_path / "out", FLAT, mapped=Mapped(keep=("more",)), target_format="jsonl")
    lines = [json.loads(line) for path in sorted((tmp_path / "out").glob("*.jsonl")) for line in path.open()]
    assert [(line["id"], line["more"]) for line in lines] == [(told[0], [told[0]]), (told[1], [])]
    assert [(each["id"], each["kind"]) for each in rejected(tmp_path / "out")] == [(told[2], "null")]


def test_bad_rows_are_put_apart_and_their_neighbours_are_right(tmp_path: Path) -> None:
    """Some of each kind, among many that are right, in an order that a seed gives."""
    draw = np.random.default_rng(7)
    wanted = signature(np.int32, 2, domain=Domain(0, 1000))
    kinds: dict[str, tuple[Any, str]] = {
        "null": (None, "null"),
        "null inside": ([1.0, None], "null"),
        "short": ([1.0], "shape"),
        "long": ([1.0, 2.0, 3.0], "shape"),
        "nothing": ([], "shape"),
        "half": ([0.5, 1.0], "cast"),
        "nan": ([float("nan"), 1.0], "cast"),
        "infinite": ([1.0, float("inf")], "cast"),
        "huge": ([2.0**31, 1.0], "cast"),
        "below": ([-1.0, 1.0], "domain"),
        "above": ([1.0, 1000.0], "domain"),
        "refused": ([666.0, 1.0], "refused"),
        "broken": ([13.0, 1.0], "engine"),
    }
    rows: list[Any] = [[float(at % 600 + 14), 1.0] for at in range(3000)]
    bad = {}
    for name, at in zip([*kinds] * 3, draw.permutation(len(rows)), strict=False):
        rows[at], bad[int(at)] = kinds[name][0], kinds[name][1]
    rows = [row if row is None or row[:1] != [666.0] or at in bad else [1.0, 1.0] for at, row in enumerate(rows)]
    source = write(tmp_path / "in.parquet", 700, id=[f"row-{at}" for at in range(len(rows))], x=pa.array(rows))

    def answers(inputs: Tensors) -> dict[str, np.ndarray]:
        if (inputs["x"] == 666).any():
            raise InvalidInput("no such thing")
        if (inputs["x"] == 13).any():
            raise InferenceFailed("it broke")
        return {"y": inputs["x"] * 2}

    report = score(source, tmp_path / "out", wanted, answers, limits=Limits(500))
    assert (report.rows, report.written, report.rejected) == (3000, 3000 - len(bad), len(bad))
    found = {each["row"]: each for each in rejected(tmp_path / "out")}
    assert {row: each["kind"] for row, each in found.items()} == bad
    assert all(each["id"] == f"row-{row}" and each["file"] == "in.parquet" for row, each in found.items())
    table = results(tmp_path / "out")
    assert table.column("id").to_pylist() == [f"row-{at}" for at in range(len(rows)) if at not in bad]
    assert table.column("output.y").to_pylist() == [
        [2 * int(each) for each in row] for at, row in enumerate(rows) if at not in bad
    ]


def test_values_without_types_are_rejected_by_row_with_their_ids(tmp_path: Path) -> None:
    good = [json.dumps({"id": at, "x": [1, 2.5]}) for at in range(10)]
    bad = {
        '{"id": 10}': "null",
        '{"id": 11, "x": null}': "null",
        '{"id": 12, "x": 1}': "shape",
        '{"id": 13, "x": ["1", "2"]}': "cast",
        '{"id": 14, "x": [1180591620717411303424, 1]}': "cast",
        '{"id": 15, "x": [[1, 2]]}': "shape",
        '{"id": 16, "x": [1]}': "shape",
        '{"id": 17, "x": {"a": 1}}': "cast",
        '{"id": 18, "x': "undecodable",
    }
    (tmp_path / "in.jsonl").write_text("\n".join([*good, *bad]))
    score(tmp_path / "in.jsonl", tmp_path / "out", signature(np.float32, 2))
    assert results(tmp_path / "out").column("id").to_pylist() == list(range(10))
    found = rejected(tmp_path / "out")
    assert [each["kind"] for each in found] == [*bad.values()]
    assert [each["id"] for each in found] == [*range(10, 18), None]
    assert [each["row"] for each in found] == [*range(10, 19)]


def test_rows_of_several_shapes_are_asked_together_and_come_out_in_order(tmp_path: Path) -> None:
    lengths = np.random.default_rng(1).integers(1, 5, 200)
    source = write(tmp_path / "in.parquet", 70, id=np.arange(200), x=[[float(at)] * n for at, n in enumerate(lengths)])
    by = ByFunction(same, batch_rows=16)
    score(source, tmp_path / "out", signature(np.float32, None), answering=by)
    table = results(tmp_path / "out")
    assert table.column("id").to_pylist() == list(range(200))
    assert table.column("output.y").to_pylist() == [[float(at)] * n for at, n in enumerate(lengths)]
    assert max(by.calls) == 16
    assert len(by.calls) < 40


def test_a_model_without_a_batch_is_asked_row_by_row(tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", id=[1, 2, 3], x=[[1.0, 2.0], [3.0, 4.0], [5.0]])
    wanted = signature(np.float32, 2)
    from dataclasses import replace

    from enginehouse.contract.tensors import Signature

    alone = Signature(
        *(tuple(replace(s, shape=(2,)) for s in each) for each in (wanted.inputs, wanted.outputs)), batched=False
    )
    score(source, tmp_path / "out", alone)
    assert results(tmp_path / "out").column("output.y").to_pylist() == [[1, 2], [3, 4]]
    assert [each["id"] for each in rejected(tmp_path / "out")] == [3]


def test_columns_constants_and_names_are_mapped(tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", key=["a", "b"], p=[1, 2], q=[1.5, None], backend=["x", "y"])
    wanted = signature(np.float32, 2)
    mapped = Mapped({"x": ("p", "q")}, id_column="key", keep=("p", "backend"), rename={"backend": "by", "y": "z"})
    with pytest.raises(ConfigError, match="two columns of the results would be called 'by'"):
        score(source, tmp_path / "no", wanted, mapped=mapped)
    mapped = Mapped({"x": ("p", "q")}, id_column="key", keep=("p",), rename={"backend": "by", "y": "z"})
    score(source, tmp_path / "out", wanted, mapped=mapped)
    assert results(tmp_path / "out").to_pylist() == [
        {"key": "a", "p": 1, "z": [1, 1.5], "model_version": "1", "by": "numpy"}
    ]
    assert rejected(tmp_path / "out")[0]["reason"] == "column 'q' has no value (null)"
    score(source, tmp_path / "const", signature(np.int8, 2), mapped=Mapped(constants={"x": [1, 2]}, id_column="key"))
    assert results(tmp_path / "const").column("output.y").to_pylist() == [[1, 2], [1, 2]]
    flat = Mapped(constants={"x": [1, 2, 3, 4]}, id_column="key")
    score(source, tmp_path / "flat", signature(np.int8, 2, 2), mapped=flat)
    assert results(tmp_path / "flat").column("output.y").to_pylist() == [[[1, 2], [3, 4]]] * 2
    with pytest.raises(ConfigError, match=r"constant of input 'x' has shape \[4\]; the model wants"):
        score(source, tmp_path / "no", signature(np.int8, 2, 3), mapped=flat)
    with pytest.raises(ConfigError, match=r"constant \[1, 300\] of input 'x' is nothing that INT8 holds"):
        score(source, tmp_path / "no", signature(np.int8, 2), mapped=Mapped(constants={"x": [1, 300]}))


def test_rows_without_ids_are_called_by_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        write(tmp_path / "in" / f"{name}.parquet", x=pa.array([1, 2], pa.float32()))
    score(tmp_path / "in" / "a.parquet", tmp_path / "one", FLAT)
    score(tmp_path / "in", tmp_path / "all", FLAT)
    assert results(tmp_path / "one").column("id").to_pylist() == [0, 1]
    assert results(tmp_path / "all").column("id").to_pylist() == [
        "a.parquet:0",
        "a.parquet:1",
        "b.parquet:0",
        "b.parquet:1",
    ]


def test_a_part_of_the_rows_is_the_same_part_every_time(tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", 300, id=np.arange(1000), x=np.arange(1000, dtype=np.float32))
    for target in ("a", "b"):
        assert score(source, tmp_path / target, FLAT, sample=0.1, limits=Limits(200)).rows < 200
    assert results(tmp_path / "a") == results(tmp_path / "b")
    score(source, tmp_path / "c", FLAT, limit=450, limits=Limits(200))
    assert results(tmp_path / "c").column("id").to_pylist() == list(range(450))


def test_what_lasts_beyond_a_row_stops_the_job_and_what_is_done_stays(tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", 10, id=np.arange(40), x=np.arange(40, dtype=np.float32))

    def answers(inputs: Tensors) -> dict[str, np.ndarray]:
        if inputs["x"].max() >= 20:
            raise EngineUnavailable("numpy", "it is gone")
        return {"y": inputs["x"]}

    with pytest.raises(EngineUnavailable):
        score(source, tmp_path / "out", FLAT, answers, limits=Limits(10))
    assert score(source, tmp_path / "out", FLAT, limits=Limits(10)).is_complete
    assert results(tmp_path / "out").column("id").to_pylist() == list(range(40))


@pytest.mark.parametrize(("most", "passes"), [("0", False), ("2", False), ("3", True), ("1%", False), ("0.1", True)])
def test_a_job_of_which_too_much_is_rejected_ends_early(tmp_path: Path, most: str, passes: bool) -> None:
    x = [1e300 if at in (3, 14, 33) else 1.0 for at in range(40)]
    source = write(tmp_path / "in.parquet", 10, id=np.arange(40), x=x)
    if passes:
        assert score(source, tmp_path / "out", FLAT, max_rejected=most).rejected == 3
        return
    with pytest.raises(
        InvalidInput, match="rows were rejected so far, more than the . of --max-rejected; why is in .*/_rejected/"
    ):
        score(source, tmp_path / "out", FLAT, max_rejected=most)


def test_a_job_of_which_nothing_is_right_at_first_does_not_begin(tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", id=[1, 2], x=[1e300, 1e300])
    with pytest.raises(InvalidInput, match=r"none of the first 2 rows can be scored: column 'x' has the value 1e\+300"):
        score(source, tmp_path / "out", FLAT)
    assert not (tmp_path / "out").exists()


def test_results_as_json_lines_lose_nothing_that_json_has(tmp_path: Path) -> None:
    ids = pa.array([2**53 + 1, None], pa.int64())
    source = write(tmp_path / "in.parquet", id=ids, x=pa.array([float("nan"), 1.5], pa.float32()))
    score(source, tmp_path / "out", FLAT, target_format="jsonl")
    (path,) = (tmp_path / "out").glob("*.jsonl")
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"id": 2**53 + 1, "output.y": "nan", "model_version": "1", "backend": "numpy"},
        {"id": None, "output.y": 1.5, "model_version": "1", "backend": "numpy"},
    ]


def test_a_folder_with_other_things_is_not_written_into(tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", id=[1], x=[1.0])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    with pytest.raises(ConfigError, match="is not empty, and no job is there to go on with; name a new folder"):
        score(source, tmp_path / "out", FLAT)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, np.uint8, np.int64])
def test_the_best_classes_come_with_their_labels(tmp_path: Path, dtype: Any) -> None:
    x = np.array([[1, 3, 2], [5, 5, 0], [0, 0, 7]]).astype(dtype)
    np.savez(tmp_path / "in.npz", x=x)
    wanted = signature(dtype, 3)
    score(tmp_path / "in.npz", tmp_path / "out", wanted, mapped=Mapped(top_k=2, labels=("a", "b", "c")))
    best = results(tmp_path / "out").column("output.y.top").to_pylist()
    assert [[each["label"] for each in row] for row in best] == [["b", "c"], ["a", "b"], ["c", "a"]]
    assert [[each["score"] for each in row] for row in best] == [[3, 2], [5, 5], [7, 0]]
    score(tmp_path / "in.npz", tmp_path / "numbers", wanted, mapped=Mapped(top_k=1, rename={"output.y.top": "best"}))
    assert [row[0]["class"] for row in results(tmp_path / "numbers").column("best").to_pylist()] == [1, 0, 2]
    with pytest.raises(ConfigError, match="--top-k 4 of output 'y', which has 3 classes"):
        score(tmp_path / "in.npz", tmp_path / "no", wanted, mapped=Mapped(top_k=4))
    with pytest.raises(ConfigError, match="1 labels for output 'y', which has 3 classes"):
        score(tmp_path / "in.npz", tmp_path / "no", wanted, mapped=Mapped(top_k=1, labels=("a",)))


async def test_a_job_may_be_started_where_a_loop_runs(tmp_path: Path) -> None:
    """As in a notebook."""
    source = write(tmp_path / "in.parquet", id=[1], x=[1.0])
    assert score(source, tmp_path / "out", FLAT).written == 1
