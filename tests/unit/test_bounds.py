"""Bounds that one number does not say: from which value on, and what is blank; as a whole and beside the plain ones."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from enginehouse.contract import probes
from enginehouse.contract.bounds import InputBound, Region, Values, described, narrower
from enginehouse.contract.manifest import Artifact
from enginehouse.contract.probes import Probe

WHOLE = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]
BLANKABLE = [np.bool_, np.uint8, np.int64, np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
numbers = st.one_of(st.none(), st.integers(-(2**20), 2**20))
axes = st.sampled_from([(), (0,), (1,), (2,), (1, 2), (0, 1, 2)])
regions = st.builds(
    Region,
    below=st.one_of(st.none(), st.just("finite"), st.integers(1, 2**20)),
    at_least=numbers,
    less_than=numbers,
    not_zero=st.lists(axes, max_size=2).map(tuple),
    not_constant=st.lists(axes.filter(bool), max_size=2).map(tuple),
    not_faint=st.lists(st.tuples(axes, st.integers(-5, 20)), max_size=2).map(tuple),
)
bounds = st.one_of(st.just("finite"), st.integers(1, 2**20), regions)
arrays = st.builds(
    lambda values, zeros: np.where(np.array(zeros), 0, np.array(values)).reshape(2, 2, 3),
    st.lists(st.sampled_from([0, 1, -1, 5, -5, 90, -(2**19), 2**20]), min_size=12, max_size=12),
    st.lists(st.booleans(), min_size=12, max_size=12),
)


def is_blank(array: np.ndarray, along: tuple[int, ...], constant: bool) -> bool:
    """The same by the book: each slice by itself, element by element."""
    return any(
        values and (len(set(values)) == 1 if constant else set(values) == {0}) for values in slices(array, along)
    )


def slices(array: np.ndarray, along: tuple[int, ...]) -> Iterator[list[Any]]:
    rest = [axis for axis in range(array.ndim) if axis not in along]
    for at in itertools.product(*(range(array.shape[axis]) for axis in rest)):
        index: list[Any] = [slice(None)] * array.ndim
        for axis, place in zip(rest, at, strict=True):
            index[axis] = place
        yield np.asarray(array[tuple(index)]).ravel().tolist()


@pytest.mark.parametrize("dtype", WHOLE)
@given(st.lists(st.integers(-(2**63), 2**64 - 1), min_size=1, max_size=9), numbers, numbers)
def test_whole_numbers_of_every_type_are_kept_to_either_side(
    dtype: Any, given: list[int], low: int | None, high: int | None
) -> None:
    info = np.iinfo(dtype)
    fitting = [min(max(number, info.min), info.max) for number in given]
    values = Values({"id": np.array(fitting, dtype)})
    only: dict[str, InputBound] = {"id": Region(at_least=low, less_than=high)}
    outside = any((low is not None and one < low) or (high is not None and one >= high) for one in fitting)
    assert bool(values.beyond(only)) == bool(values.place(only)) == outside


@pytest.mark.parametrize("dtype", BLANKABLE)
@given(arrays, axes, st.booleans())
def test_blanks_are_found_in_every_type(dtype: Any, array: np.ndarray, along: tuple[int, ...], constant: bool) -> None:
    constant = constant and bool(along)
    array = np.clip(array, 0, 90).astype(dtype)
    only: dict[str, InputBound] = {"x": Region(not_constant=(along,)) if constant else Region(not_zero=(along,))}
    wanted = is_blank(array.astype(np.float64), along, constant)
    assert bool(Values({"x": array}).beyond(only)) == bool(Values({"x": array}).place(only)) == wanted


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@given(arrays, axes, st.integers(-9, 1), st.sampled_from([0.0, 0.0, np.nan, np.inf, -np.inf]))
def test_what_is_faint_is_found_in_floats_of_every_type(
    dtype: Any, array: np.ndarray, along: tuple[int, ...], exponent: int, first: float
) -> None:
    array = (np.clip(array, -90, 90) / 64).astype(dtype)
    array[0, 0, 0] = first
    only: dict[str, InputBound] = {"x": Region(not_faint=((along, exponent),))}
    wanted = any(
        not np.isnan(values).any() and 0 < max(map(abs, values)) < 2.0**exponent
        for values in slices(array.astype(np.float64), along)
    )
    assert bool(Values({"x": array}).beyond(only)) == bool(Values({"x": array}).place(only)) == wanted


@given(arrays, bounds, bounds)
def test_the_bounds_of_two_keep_out_what_either_does(array: np.ndarray, one: InputBound, other: InputBound) -> None:
    values = Values({"x": array.astype(np.int64)})
    either = bool(values.beyond({"x": one})) or bool(values.beyond({"x": other}))
    both = narrower({"x": one}, {"x": other})
    assert bool(values.beyond(both)) == bool(values.place(both)) == either
    assert narrower(both, {"x": other}) == narrower(both, {"x": one}) == both


def test_what_one_number_says_stays_one() -> None:
    both_sides = narrower({"x": Region(at_least=1 - 2**24)}, {"x": Region(less_than=2**24)})
    assert both_sides == {"x": 2**24}
    assert narrower({"x": 2**24}, {"x": Region(at_least=0)}) == {"x": Region(at_least=0, less_than=2**24)}
    of_parts = {"x": Region(not_zero=((1, 2), (2,), (3,)), not_constant=((3,),))}
    assert narrower(of_parts, {}) == {"x": Region(not_zero=((2,),), not_constant=((3,),))}
    assert narrower(of_parts, {"x": Region(below="finite", not_zero=((1,),))}) == {
        "x": Region(below="finite", not_zero=((1,), (2,)), not_constant=((3,),))
    }


def test_of_what_is_faint_the_largest_is_kept_of_the_fewest_axes() -> None:
    one, other = (Region(not_faint=(each,)) for each in (((1, 2), -9), ((2,), -9)))
    assert narrower({"x": one}, {"x": other}) == {"x": other}
    fainter, louder = (Region(not_faint=(((1,), exponent),)) for exponent in (-20, -3))
    assert narrower({"x": fainter}, {"x": louder}) == {"x": louder}
    both = {"x": Region(below="finite", not_zero=((1,),), not_faint=(((1,), -3), ((2,), -7)))}
    assert described(both) == (
        "finite 'x' nowhere below 2^-3 all along axis 1 and nowhere below 2^-7 but 0 all along axis 2"
    )
    quiet = {"x": np.array([[1, 0.01], [0.01, 0.002], [0, 0]], np.float32)}
    said = "input 'x' has values below 2^-3 all along axis 1"
    assert Values(quiet).beyond({"x": louder}) == said
    assert Values(quiet).place({"x": louder}) == f"{said} at [1]"
    assert Values(quiet).place({"x": Region(not_faint=(((), -8),))}) == "input 'x' has a value below 2^-8 at [1, 1]"


def test_regions_and_what_is_beyond_them_are_told_in_words() -> None:
    assert described({"id": Region(at_least=0, less_than=2**20)}) == "'id' at least 0 and below 2^20"
    assert described({"id": Region(at_least=1 - 2**31, less_than=2)}) == "'id' above -2^31 and below 2"
    blank: dict[str, InputBound] = {"x": Region(below="finite", not_zero=((1,),), not_constant=((1, 2),))}
    assert described(blank) == "finite 'x' nowhere 0 all along axis 1 and nowhere one value all along axes 1 and 2"
    assert described({"x": Region(not_zero=((),))}) == "'x' nowhere 0"
    mask = np.array([[1, 0, 1], [0, 0, 0]])
    assert Values({"m": mask}).beyond({"m": Region(not_zero=((1,),))}) == "input 'm' has 0 all along axis 1"
    assert Values({"m": mask}).place({"m": Region(not_zero=((1,),))}) == "input 'm' has 0 all along axis 1 at [1]"
    assert Values({"m": mask}).place({"m": Region(not_zero=((),))}) == "input 'm' has a 0 at [0, 1]"
    assert Values({"m": -mask}).place({"m": Region(at_least=0)}) == "input 'm' has the number -1 at [0, 0]"
    assert Values({"m": mask[:, :0]}).place({"m": Region(not_zero=((1,),))}) == ""


@given(bounds)
def test_bounds_are_read_as_they_were_written(bound: InputBound) -> None:
    artifact = Artifact(
        name="a", format="onnx", precision="fp32", status="ready", inputs_only={"onnxruntime-cuda": {"x": bound}}
    )
    text = artifact.model_dump_json()
    assert Artifact.model_validate_json(text) == artifact
    if not isinstance(bound, Region):
        assert json.loads(text)["inputs_only"] == {"onnxruntime-cuda": {"x": bound}}, "as releases before write it"


def test_a_part_of_a_bound_that_is_not_known_is_refused() -> None:
    text = '{"name": "a", "format": "onnx", "precision": "fp32", "status": "ready", '
    text += '"inputs_only": {"tensorrt": {"x": {"at_most": 5}}}}'
    with pytest.raises(ValidationError, match="at_most"):
        Artifact.model_validate_json(text)


@given(st.lists(bounds, max_size=4), st.booleans())
def test_probes_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, many: Any, inside: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "probes.npz"
    known = [Probe(("x",), bound, "values", None, None, inside) for bound in many]
    probes.write(path, known)
    assert probes.read(path) == known
