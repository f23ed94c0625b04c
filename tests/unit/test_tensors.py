"""The signature check names what is wrong; stack and split undo each other."""

from __future__ import annotations

import itertools
import re

import ml_dtypes
import numpy as np
import pytest

from enginehouse.contract.errors import InvalidInput
from enginehouse.contract.tensors import DTYPES, Signature, TensorSpec, checked_arrays, datatype, split, stack

IMAGE = TensorSpec("image", np.dtype(np.uint8), (None, 8, 8))
SCALE = TensorSpec("scale", np.dtype(np.float32), (None,))
BOTH = Signature((IMAGE, SCALE), ())


def given(rows: int) -> dict[str, np.ndarray]:
    return {"image": np.zeros((rows, 8, 8), np.uint8), "scale": np.ones(rows, np.float32)}


def test_a_fitting_request_has_as_many_rows_as_its_first_dimension() -> None:
    assert BOTH.check(given(3)) == 3


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"image": None}, "'image' is a NoneType"),
        (
            {"image": np.zeros((2, 8, 8), np.float32)},
            r"'image' has dtype float32 \(FP32\).* wants uint8 \(UINT8\)",
        ),
        ({"image": np.zeros((2, 8, 9), np.uint8)}, r"'image' has shape \[2, 8, 9\]; the model wants \[\*, 8, 8\]"),
        ({"image": np.zeros((8, 8), np.uint8)}, r"'image' has shape \[8, 8\]"),
        ({"image": np.uint8(1)}, "'image' is a uint8"),
        ({"image": np.array(1, np.uint8)}, r"'image' has shape \[\]"),
        ({"scale": np.ones(3, np.float32)}, "'image' has 2 rows, 'scale' has 3"),
        ({"scale": np.ones(2, ">f4")}, "'scale' has dtype >f4"),
        ({"scale": np.array(["1", "2"])}, r"'scale' has dtype <U1 \(BYTES\)"),
        ({"extra": np.ones(2)}, "'extra' is not known.*image: UINT8"),
    ],
)
def test_what_does_not_fit_is_named(changed: dict[str, object], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        BOTH.check({**given(2), **changed})  # type: ignore[dict-item]


def wanted(*shape: int | None) -> Signature:
    return Signature((TensorSpec("x", np.dtype(np.float32), shape),), (), batched=shape[0] is None)


@pytest.mark.parametrize(
    "shape", [(None, 32, 32, 3), (None, 3, 32, 32), (None, None, 3), (4, 5, 6), (None, 2, 3, 4, 5)]
)
def test_the_transpose_that_is_named_fits(shape: tuple[int | None, ...]) -> None:
    signature = wanted(*shape)
    sizes = tuple(300 if dim is None else dim for dim in shape)
    for order in itertools.permutations(range(1, len(shape))):
        given = np.zeros(sizes, np.float32).transpose(0, *order)
        try:
            signature.check({"x": given})
        except InvalidInput as error:
            (named,) = re.findall(r"; transpose\((.*)\) of it would fit$", str(error))
            signature.check({"x": given.transpose([int(dim) for dim in named.split(",")])})


def test_where_only_pixels_are_elsewhere_their_order_is_kept() -> None:
    with pytest.raises(InvalidInput, match=r"wants \[\*, 32, 32, 3\]; transpose\(0, 2, 3, 1\) of it would fit$"):
        wanted(None, 32, 32, 3).check({"x": np.zeros((300, 3, 32, 32), np.float32)})


@pytest.mark.parametrize(
    ("shape", "given"),
    [
        ((None, 32, 32, 3), (300, 3, 32, 31)),
        ((None, 32, 32, 3), (3, 32, 32)),
        ((None, 4), (1, 5)),
        ((4, 5, 6), (3, 6, 5)),
        ((None, *range(2, 9)), (1, *range(8, 1, -1))),
    ],
)
def test_where_no_transpose_fits_none_is_named(shape: tuple[int | None, ...], given: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match=r"the model wants \[[^\]]*\]$"):
        wanted(*shape).check({"x": np.zeros(given, np.float32)})


def test_a_missing_input_is_named() -> None:
    with pytest.raises(InvalidInput, match="'scale'"):
        BOTH.check({"image": given(1)["image"]})


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(InvalidInput, match="0 rows"):
        BOTH.check(given(0))


def test_an_unbatched_request_is_one_row_whatever_its_shape() -> None:
    signature = Signature((TensorSpec("audio", np.dtype(np.float32), (None,)),), (), batched=False)
    assert signature.check({"audio": np.zeros(16000, np.float32)}) == 1


def test_strings_of_every_numpy_kind_are_bytes() -> None:
    signature = Signature((TensorSpec("text", DTYPES["BYTES"], (None, 1)),), ())
    for array in (np.array([["a"]]), np.array([[b"a"]]), np.array([["a"]], dtype=object)):
        assert signature.check({"text": array}) == 1
        assert datatype(array.dtype) == "BYTES"


@pytest.mark.parametrize("name", DTYPES)
def test_datatypes_and_dtypes_are_one_to_one(name: str) -> None:
    assert datatype(DTYPES[name]) == name
    assert TensorSpec("x", DTYPES[name], (None, 2, None)).example(3, {2: 4}).shape == (3, 2, 4)
    # Without a batch dim 0 has an extent of its own.
    assert TensorSpec("x", DTYPES[name], (None, 2)).example(1, {0: 8}).shape == (8, 2)


def test_a_dtype_without_a_name_is_refused() -> None:
    with pytest.raises(InvalidInput, match="complex64"):
        datatype(np.dtype(np.complex64))
    assert datatype(np.dtype(ml_dtypes.bfloat16)) == "BF16"


@pytest.mark.parametrize("rows", [[1], [2, 1, 3], [1, 1]])
def test_split_undoes_stack(rows: list[int]) -> None:
    requests = [{"x": np.full((count, 2), turn), "y": np.arange(count)} for turn, count in enumerate(rows)]
    parts = split(stack(requests), rows)
    for request, part in zip(requests, parts, strict=True):
        assert all((part[name] == request[name]).all() for name in request)


def test_a_single_request_is_not_copied() -> None:
    request = given(2)
    assert stack([request])["image"] is request["image"]


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        (None, "inputs are of type NoneType; send a dictionary"),
        ([np.zeros(1)], "inputs are of type list"),
        (np.zeros(1), "inputs are a numpy.ndarray"),
        ({"x": [[1.0]]}, "input 'x' is of type list; send a numpy array"),
        ({"x": None}, "input 'x' is of type NoneType"),
        ({"x": np.float32(1)}, "input 'x' is a numpy.float32"),
        ({"x": np.ma.array([1, 2], mask=[0, 1])}, "input 'x' is a masked array; fill"),
        ({"x": np.array([[0, 1], [2, 255]], np.uint8).view(np.bool_)}, "input 'x' has the byte 255; booleans are"),
        ({"x": np.array([[0, 1], [1, 7]], np.uint8).view(np.bool_).T}, "input 'x' has the byte 7; booleans are"),
    ],
)
def test_what_is_no_array_is_told(inputs: object, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        checked_arrays(inputs)


def test_arrays_are_passed_as_they_are() -> None:
    inputs = {"x": np.zeros((2, 3)), "y": np.array(1), "is": np.array([True, False]), "none": np.zeros((0, 2), bool)}
    assert checked_arrays(inputs) is inputs
