"""Between a Parquet file and a model no value changes: it is the same number, or it is refused by column and row."""

from __future__ import annotations

import decimal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from enginehouse.contract.errors import ConfigError, InvalidInput
from enginehouse.contract.tensors import DTYPES, Signature, TensorSpec
from enginehouse.faces.scoring.columns import column_of, tensor_of
from enginehouse.faces.scoring.job import _check_names, _from_npz, _from_parquet

from .foreign_bodies import FOREIGN

WHOLE = [np.dtype(name) for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")]
FLOATS = [DTYPES[name] for name in ("FP16", "FP32", "FP64", "BF16")]


def spec(dtype: Any, *shape: int | None) -> TensorSpec:
    return TensorSpec("x", np.dtype(dtype), (None, *shape))


def read(values: Any, wanted: TensorSpec, kind: pa.DataType | None = None) -> np.ndarray:
    column = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([pa.array(values, kind)])
    return tensor_of(column, wanted, pa.chunked_array([[f"row-{at}" for at in range(len(column))]]))


def near(dtype: np.dtype) -> Sequence[int]:
    """Numbers where something happens: the ends of every type, and what floats no longer tell apart."""
    ends = [end for each in WHOLE for end in (int(np.iinfo(each).min), int(np.iinfo(each).max))]
    ends += [2**8, 2**11, 2**24, 2**53]
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    return sorted({value for end in ends for value in (end - 1, end, end + 1) if low <= value <= high})


@pytest.mark.parametrize("target", [*WHOLE, *FLOATS], ids=str)
@pytest.mark.parametrize("source", WHOLE, ids=str)
def test_a_whole_number_arrives_as_it_is_or_is_refused(source: np.dtype, target: np.dtype) -> None:
    for value in near(source):
        try:
            (got,) = read(np.array([value], source), spec(target))
        except InvalidInput as error:
            assert f"column 'x' has the value {value} in the row of id 'row-0'" in str(error)
            assert not _holds(target, value), (value, target)
        else:
            assert int(got if target in WHOLE else float(got)) == value
            assert _holds(target, value), (value, target)


def _holds(dtype: np.dtype, value: int) -> bool:
    if dtype in WHOLE:
        return bool(np.iinfo(dtype).min <= value <= np.iinfo(dtype).max)
    with np.errstate(over="ignore"):
        cast = float(np.array([value], np.float64).astype(dtype)[0]) if dtype != np.float64 else float(value)
    # float64 first is exact below 2^53; beyond that the two roundings agree on whether it was exact.
    return np.isfinite(cast) and int(cast) == value


@settings(max_examples=300, deadline=None)
@given(st.floats(), st.sampled_from(WHOLE))
def test_a_float_is_a_whole_number_or_refused(value: float, target: np.dtype) -> None:
    is_whole = np.isfinite(value) and value == int(value)
    if is_whole and np.iinfo(target).min <= int(value) <= np.iinfo(target).max:
        assert int(read(np.array([value]), spec(target))[0]) == int(value)
    else:
        with pytest.raises(InvalidInput, match=f"which {'U' if target.kind == 'u' else ''}INT"):
            read(np.array([value]), spec(target))


@settings(max_examples=300, deadline=None)
@given(st.floats(), st.sampled_from(FLOATS))
def test_a_float_is_rounded_and_never_becomes_infinite(value: float, target: np.dtype) -> None:
    with np.errstate(over="ignore"):
        want = np.array([value]).astype(target)
    if np.isfinite(value) and not np.isfinite(want[0]):
        with pytest.raises(InvalidInput, match="does not hold"):
            read(np.array([value]), spec(target))
    else:
        np.testing.assert_array_equal(read(np.array([value]), spec(target)).astype(np.float64), want.astype(np.float64))


X = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
COLUMNS = {
    "lists": pa.chunked_array([X.tolist()], pa.list_(pa.list_(pa.float32()))),
    "large lists": pa.chunked_array([X.tolist()], pa.large_list(pa.large_list(pa.float64()))),
    "lists of one size": pa.chunked_array([X.tolist()], pa.list_(pa.list_(pa.float32(), 3), 2)),
    "several chunks": pa.chunked_array([X[:1].tolist(), X[1:].tolist()], pa.list_(pa.list_(pa.float32()))),
    "a part of a longer column": pa.chunked_array([[*X.tolist(), *X.tolist()]]).slice(4),
    "tensors": pa.chunked_array([column_of(X)]),
    "tensors in chunks": pa.chunked_array([column_of(X[:3]), column_of(X[3:])]),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_rows_are_read_from_every_kind_of_column(kind: str) -> None:
    np.testing.assert_array_equal(read(COLUMNS[kind], spec(np.float32, 2, 3)), X)


def test_text_is_read_from_every_kind_of_column() -> None:
    words = ["a", "", "ü"]
    for column in (pa.array(words), pa.array(words, pa.large_string()), pa.array(words).dictionary_encode()):
        assert read(pa.chunked_array([column]), spec(object)).tolist() == words
    assert read([b"\xff", b""], spec(object)).tolist() == [b"\xff", b""]


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "null": ([1.0, None], np.float32, r"column 'x' has no value \(null\) in the row of id 'row-1'"),
    "null list": ([[1.0], None, [2.0]], np.float32, "no value .* in the row of id 'row-1'"),
    "null in a list": ([[1.0, 2.0], [3.0, None]], np.float32, "no value .* in the row of id 'row-1'"),
    "null text": (["a", None], object, "no value .* in the row of id 'row-1'"),
    "ragged": ([[1.0], [1.0, 2.0]], np.float32, "rows of different shapes: lists of 1 and 2 values"),
    "decimal": (
        [decimal.Decimal("1.5")],
        np.float32,
        r"holds decimal128\(2, 1\), and .*; write numbers, best as float32",
    ),
    "text for numbers": (["1.5"], np.float32, "holds string, and the model wants x: FP32.*; write numbers"),
    "numbers for text": ([1], object, "holds int64, and the model wants x: BYTES.*; write text"),
    "struct": ([{"a": 1.0}], np.float32, "holds struct<a: double>"),
    "narrowed": ([[1, 2], [3_000_000_000, 5]], np.int32, "the value 3000000000 in the row of id 'row-1', which INT32"),
    "a half for a flag": ([0.5], np.bool_, "the value 0.5 .* which BOOL"),
    "two for a flag": ([2], np.bool_, "the value 2 .* which BOOL"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_model_cannot_take_is_refused_by_column_and_row(kind: str) -> None:
    values, dtype, message = REFUSED[kind]
    with pytest.raises(InvalidInput, match=message):
        read(values, spec(dtype))


@pytest.mark.parametrize(("name", "way_out"), [("id", "with --id-column"), ("backend", "another name in the model")])
def test_an_output_never_takes_the_place_of_another_column(name: str, way_out: str) -> None:
    outputs = (TensorSpec("y", np.dtype(np.float32), (None,)), TensorSpec(name, np.dtype(np.float32), (None,)))
    with pytest.raises(ConfigError, match=f"an output '{name}'.*{way_out}"):
        _check_names(Signature((spec(np.float32),), outputs), "id")


def test_answers_are_written_as_they_are() -> None:
    for array in (
        X,
        X[:, 0, 0],
        X.astype(DTYPES["BF16"]),
        np.array([b"a", b"\xff"], object),
        np.array([["a"]], object),
    ):
        column = pa.chunked_array([column_of(array)])
        wanted = spec(object if array.dtype.hasobject else np.float32)
        np.testing.assert_array_equal(read(column, wanted), array.astype(wanted.dtype))


ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "another name": ({"z": X}, "no column x; it has z"),
    "one number": ({"x": np.float32(1)}, "'x' is one number; give an array with one row for each request"),
    "no rows": ({"x": X[:0]}, "no rows"),
    "fewer ids": ({"x": X, "id": np.arange(3)}, "arrays differ in rows: {'x': 4, 'id': 3}"),
    "objects": ({"x": np.array([{}], object)}, "not a readable .npz of plain arrays: Object arrays"),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_a_file_of_arrays_that_cannot_be_scored_is_refused_in_a_sentence(kind: str, tmp_path: Path) -> None:
    arrays, message = ARRAYS[kind]
    np.savez(tmp_path / "in.npz", **arrays)
    with pytest.raises(InvalidInput, match=message):
        _from_npz(str(tmp_path / "in.npz"), ["x"], "id")


def test_a_column_of_ids_that_is_not_there_is_told_with_the_option(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=X)
    parquet.write_table(pa.table({"x": [1.0], "nr": [1]}), tmp_path / "in.parquet")
    told = "no column {}, which results are joined by; it has x.*: name one with --id-column"
    with pytest.raises(InvalidInput, match=told.format("key")):
        _from_npz(str(tmp_path / "in.npz"), ["x"], "key")
    with pytest.raises(InvalidInput, match=told.format("id")):
        _from_parquet(str(tmp_path / "in.parquet"), ["x"], "id")
    with pytest.raises(InvalidInput, match="none.parquet: no such file or folder"):
        _from_parquet(str(tmp_path / "none.parquet"), ["x"], "id")


def test_a_picture_that_is_called_npz_is_called_a_picture(tmp_path: Path) -> None:
    (tmp_path / "in.npz").write_bytes(FOREIGN["jpeg"][0])
    with pytest.raises(InvalidInput, match="it is a JPEG picture"):
        _from_npz(str(tmp_path / "in.npz"), ["x"], "id")
