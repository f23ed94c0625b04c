"""Between a Parquet file and a model no value changes: it is the same number, or it is refused by column and row."""

from __future__ import annotations

import decimal
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginehouse.contract.errors import InvalidInput
from enginehouse.contract.tensors import DTYPES, TensorSpec
from enginehouse.faces.scoring.rows.columns import cast, check_type, column_of, type_of

WHOLE = [np.dtype(name) for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")]
FLOATS = [DTYPES[name] for name in ("FP16", "FP32", "FP64", "BF16")]


def spec(dtype: Any, *shape: int | None) -> TensorSpec:
    return TensorSpec("x", np.dtype(dtype), (None, *shape))


def read(values: Any, wanted: TensorSpec, kind: pa.DataType | None = None) -> np.ndarray:
    """The tensor of a column whose rows have one shape; raises InvalidInput with the first bad row and its reason."""
    column = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([pa.array(values, kind)])
    check_type(column.type, wanted)
    found = cast(column, wanted)
    if found.bad:
        row, why = min(found.bad.items())
        raise InvalidInput(f"row {row}: {why.reason}")
    ((rows, array),) = found.blocks
    assert rows.tolist() == list(range(len(column)))
    return array


def tensor_column(array: np.ndarray) -> pa.Array:
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(array))


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
            assert f"row 0: column 'x' has the value {value}, which" in str(error)
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
    "tensors": pa.chunked_array([tensor_column(X)]),
    "tensors in chunks": pa.chunked_array([tensor_column(X[:3]), tensor_column(X[3:])]),
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
    "null": ([1.0, None], np.float32, r"row 1: column 'x' has no value \(null\)"),
    "null list": ([[1.0], None, [2.0]], np.float32, "row 1: .* no value"),
    "null in a list": ([[1.0, 2.0], [3.0, None]], np.float32, "row 1: .* no value"),
    "null text": (["a", None], object, "row 1: .* no value"),
    "ragged": ([[[1.0], [1.0, 2.0]]], np.float32, "different shapes in itself: lists of 1 and 2 values"),
    "decimal": (
        [decimal.Decimal("1.5")],
        np.float32,
        r"holds decimal128\(2, 1\), and .*; write numbers, best as float32",
    ),
    "text for numbers": (["1.5"], np.float32, "holds string, and the model wants x: FP32.*; write numbers"),
    "numbers for text": ([1], object, "holds int64, and the model wants x: BYTES.*; write text"),
    "struct": ([{"a": 1.0}], np.float32, "holds struct<a: double>"),
    "narrowed": ([[1, 2], [3_000_000_000, 5]], np.int32, "row 1: .* the value 3000000000, which INT32"),
    "a half for a flag": ([0.5], np.bool_, "the value 0.5, which BOOL"),
    "two for a flag": ([2], np.bool_, "the value 2, which BOOL"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_model_cannot_take_is_refused_by_column_and_row(kind: str) -> None:
    values, dtype, message = REFUSED[kind]
    with pytest.raises(InvalidInput, match=message):
        read(values, spec(dtype))


FLAT = {
    "lists": pa.chunked_array([X.reshape(4, 6).tolist()], pa.list_(pa.float32())),
    "large lists": pa.chunked_array([X.reshape(4, 6).tolist()], pa.large_list(pa.float64())),
    "lists of one size": pa.chunked_array([X.reshape(4, 6).tolist()], pa.list_(pa.int64(), 6)),
    "several chunks": pa.chunked_array([X[:1].reshape(1, 6).tolist(), X[1:].reshape(3, 6).tolist()]),
    "tensors": pa.chunked_array([tensor_column(X.reshape(4, 6))]),
}


@pytest.mark.parametrize("kind", FLAT)
def test_a_flat_list_of_all_numbers_of_a_row_is_the_row(kind: str) -> None:
    np.testing.assert_array_equal(read(FLAT[kind], spec(np.float32, 2, 3)), X)
    np.testing.assert_array_equal(read(FLAT[kind], spec(np.float32, 3, 1, 2)), X.reshape(4, 3, 1, 2))


def test_a_flat_list_of_another_length_is_refused_with_both_and_its_neighbours_are_not() -> None:
    column = pa.chunked_array([[list(range(6)), list(range(5)), None, list(range(6)), [], list(range(12))]])
    found = cast(column, spec(np.float32, 2, 3))
    assert {row: why.kind for row, why in found.bad.items()} == {1: "shape", 2: "null", 4: "shape", 5: "shape"}
    assert found.bad[1].reason == "column 'x' has a flat list of 5 values, and x: FP32[*,2,3] is 6 of them"
    ((rows, array),) = found.blocks
    assert (rows.tolist(), array.tolist()) == ([0, 3], [[[0, 1, 2], [3, 4, 5]]] * 2)


@pytest.mark.parametrize("shape", [(6,), (None, 3), (2, None)])
def test_where_a_dimension_is_free_or_alone_lists_are_what_they_are(shape: tuple[int | None, ...]) -> None:
    assert read(FLAT["lists"], spec(np.float32, *shape)).shape == (4, 6)


def test_rows_of_several_shapes_are_cast_apart() -> None:
    column = pa.chunked_array([[[1.0], None, [2.0, 3.0], [4.0], [5.0, None]]])
    found = cast(column, spec(np.float32, None))
    assert {row: why.kind for row, why in found.bad.items()} == {1: "null", 4: "null"}
    assert [(rows.tolist(), array.tolist()) for rows, array in found.blocks] == [([0, 3], [[1], [4]]), ([2], [[2, 3]])]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.none() | st.lists(st.none() | st.lists(st.none() | st.integers(-300, 300), max_size=2), max_size=2)))
def test_every_row_is_cast_as_it_is_alone_or_is_bad(rows: list[Any]) -> None:
    kind = pa.list_(pa.list_(pa.int64()))
    together = cast(pa.chunked_array([pa.array(rows, kind)]), spec(np.int8, None, None))
    found = {row: array[at] for own, array in together.blocks for at, row in enumerate(own.tolist())}
    assert sorted([*found, *together.bad]) == list(range(len(rows)))
    for at, row in enumerate(rows):
        alone = cast(pa.chunked_array([pa.array([row], kind)]), spec(np.int8, None, None))
        if alone.bad:
            assert together.bad[at] == alone.bad[0]
        else:
            np.testing.assert_array_equal(found[at], alone.blocks[0][1][0])


@pytest.mark.parametrize("free", [False, True])
def test_answers_are_written_as_they_are(free: bool) -> None:
    for array in (
        X,
        X[:, 0, 0],
        X[:, :0],
        X.astype(DTYPES["BF16"]),
        np.array(["a", "\xfc"], object),
        np.array([["a"]], object),
    ):
        wanted = TensorSpec("y", array.dtype, (None, *([None] * (array.ndim - 1) if free else array.shape[1:])))
        column = column_of(array, type_of(wanted, batched=True))
        assert column.type == type_of(wanted, batched=True)
        assert column.to_pylist() == array.tolist()
