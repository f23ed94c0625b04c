"""What is explained is a request that could be: one of such rows and size is refused as it would be, by every face."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.catalogs import Cluster
from tests.unit.test_router import Engine, routed

from enginehouse.contract.errors import InvalidInput
from enginehouse.contract.signature_record import Axis, check_extents, with_free_dims
from enginehouse.contract.tensors import Domain, Signature, TensorSpec
from enginehouse.routing.hints import NO_HINTS

INT, FLOAT, TEXT = np.dtype(np.int64), np.dtype(np.float32), np.dtype(object)


def spec(name: str, *shape: int | None, dtype: np.dtype = FLOAT, domain: Domain | None = None) -> TensorSpec:
    return TensorSpec(name, dtype, shape, domain)


def axis(name: str, low: int, opt: int, high: int, *dims: tuple[str, int], verified: int | None = None) -> Axis:
    return Axis(name=name, min=low, opt=opt, max=high, dims=dims, verified=verified)


IDS = spec("ids", None, None, dtype=INT, domain=Domain(5, 9))
#: Inputs, axes, whether there is a batch.
MODELS: dict[str, tuple[tuple[TensorSpec, ...], tuple[Axis, ...], bool]] = {
    "declared": ((IDS,), (axis("sequence", 1, 16, 128, ("ids", 1)),), True),
    "verified": ((IDS,), (axis("sequence", 16, 16, 16, ("ids", 1), verified=64),), True),
    "unbounded": ((IDS,), (axis("sequence", 16, 16, 16, ("ids", 1)),), True),
    "empty": ((spec("past", None, None, 4),), (axis("past", 0, 4, 8, ("past", 1)),), True),
    "masked": (
        (IDS, spec("mask", None, None)),
        (axis("sequence", 1, 16, 128, ("ids", 1), ("mask", 1)), axis("width", 3, 3, 3, ("mask", 0))),
        True,
    ),
    "summed": (
        (IDS, spec("past", None, None), spec("mask", None, None)),
        (
            axis("new", 1, 2, 4, ("ids", 1)),
            axis("past", 0, 8, 16, ("past", 1)),
            axis("past + new + 1", 2, 11, 21, ("mask", 1)),
        ),
        True,
    ),
    "text": ((spec("text", None, None, dtype=TEXT),), (axis("words", 1, 2, 4, ("text", 1)),), True),
    "fixed": ((spec("x", None, 4),), (), True),
    "four rows": ((spec("x", 4, 8), spec("y", 4)), (), False),
    "four of a batch": ((spec("x", 4, 8),), (), True),
    "time": ((spec("x", None, 8), spec("scale")), (axis("time", 1, 10, 100, ("x", 0)),), False),
}


def signature(inputs: tuple[TensorSpec, ...], axes: tuple[Axis, ...], batched: bool) -> Signature:
    return with_free_dims(Signature(inputs, (spec("y", None),), batched), axes)


def asked(name: str, rows: int, size: int | None) -> dict[str, np.ndarray]:
    """A request as a client would make it."""
    sequence = 16 if size is None else size
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "masked": {"ids": (rows, sequence), "mask": (rows, sequence)},
        "summed": {"ids": (rows, 2 if size is None else size), "past": (rows, 8), "mask": (rows, 9 + (size or 2))},
        "empty": {"past": (rows, 4 if size is None else size, 4)},
        "text": {"text": (rows, 2 if size is None else size)},
        "fixed": {"x": (rows, 4)},
        "four rows": {"x": (rows, 8), "y": (rows,)},
        "four of a batch": {"x": (rows, 8)},
        "time": {"x": (size if size is not None else 10 if rows == 1 else rows, 8), "scale": ()},
    }
    inputs, _, _ = MODELS[name]
    own = shapes.get(name, {"ids": (rows, sequence)})
    return {
        one.name: np.full(own[one.name], 5 if one.dtype == INT else b"", one.dtype)
        for one in inputs
        if one.dtype != FLOAT
    } | {one.name: np.zeros(own[one.name], FLOAT) for one in inputs if one.dtype == FLOAT}


def outcome(of: Any) -> str:
    try:
        of()
    except InvalidInput as error:
        return str(error)
    return "answered"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [None, 0, 1, 4, 64, 65, 128, 129, 500])
def test_rows_and_sizes_are_refused_as_requests_of_such_are(name: str, size: int | None) -> None:
    inputs, axes, batched = MODELS[name]
    known = signature(inputs, axes, batched)
    for rows in (0, 1, 3, 4, 9):
        if rows == 1 and name == "four rows":
            # Nobody who asks for a request says how many rows one has that has to have four.
            continue
        told = outcome(lambda rows=rows: check_extents("m@1", known, axes, rows, size))  # type: ignore[misc]
        if size is not None and not axes:
            assert told.startswith(f"size {size}: requests for 'm@1' have no dimension to choose but their rows (")
            continue
        request = asked(name, rows, size)
        assert told == outcome(lambda request=request: known.check(request))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "rows", "size", "counted"),
    [
        ("declared", 3, 128, (3, 128)),
        ("declared", 3, None, (3, None)),
        ("unbounded", 1, 4000, (1, 4000)),
        ("four rows", 1, None, (1, None)),
        ("four rows", 4, None, (1, None)),
        ("time", 1, None, (1, None)),
        ("time", 40, None, (1, 40)),
        ("time", 1, 40, (1, 40)),
        ("summed", 2, 4, (2, 4)),
    ],
)
def test_what_could_be_counts_as_the_request_would(
    name: str, rows: int, size: int | None, counted: tuple[int, int | None]
) -> None:
    inputs, axes, batched = MODELS[name]
    assert check_extents("m@1", signature(inputs, axes, batched), axes, rows, size) == counted


@pytest.mark.parametrize(
    ("rows", "size", "told"),
    [
        (1, 500, r"dimension 'sequence' is 500 \(dimension 1 of input 'ids'\); the model takes 1 to 128"),
        (1, 10**12, "is 1000000000000 .* the model takes 1 to 128"),
        (10**18, 10**18, "rows 1000000000000000000 and size 1000000000000000000: no array holds so much"),
        (-1, None, "rows -1 is no whole number from 0 on"),
        (1.5, None, "rows 1.5 is no whole number"),
        (True, None, "rows True is no whole number"),
        (1, -4, "size -4 is no whole number"),
        (1, "long", "size 'long' is no whole number"),
    ],
)
def test_what_is_refused_names_value_and_range(rows: Any, size: Any, told: str) -> None:
    inputs, axes, batched = MODELS["declared"]
    with pytest.raises(InvalidInput, match=told):
        check_extents("m@1", signature(inputs, axes, batched), axes, rows, size)


async def test_the_data_plane_explains_only_what_would_be_answered(cluster: Cluster, store: Path) -> None:
    async with routed(cluster, store, {"ort": Engine()}) as (plane, _):
        (best, *_) = plane.plane.explain("m", 3, None, NO_HINTS).choices
        assert (best.backend.pool, best.reason) == ("ort", "")
        with pytest.raises(InvalidInput, match="size 500: requests for 'm@1' have no dimension to choose"):
            plane.plane.explain("m", 1, 500, NO_HINTS)
        with pytest.raises(InvalidInput, match="has 0 rows; send at least 1"):
            plane.plane.explain("m", 0, None, NO_HINTS)
        with pytest.raises(InvalidInput, match="the name of a model is text"):
            plane.plane.explain(3, 1, None, NO_HINTS)  # type: ignore[arg-type]
