"""Engines that silently answer NaN, infinities or large ids otherwise are found out, whatever the samples are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from enginehouse.contract.errors import InferenceFailed
from enginehouse.contract.parity import LIMITS
from enginehouse.contract.tensors import Tensors
from enginehouse_build.judge.probes import Run, bounds
from enginehouse_build.reference.onnx import plain_session

from .graphs import f32, i64, model, node, save, weights


def features(activation: str) -> onnx.ModelProto:
    nodes = [
        node("MatMul", ["x", "w1"], ["h"]),
        node(activation, ["h"], ["a"]),
        node("MatMul", ["a", "w2"], ["y"]),
    ]
    parts = {"w1": weights(6, 8), "w2": weights(8, 3)}
    return model(nodes, {"x": (f32, ["n", 6])}, {"y": (f32, ["n", 3])}, parts)


def ids(comparison: str, dtype: Any) -> onnx.ModelProto:
    nodes = [
        node(comparison, ["a", "b"], ["same"]),
        node("Cast", ["same"], ["f"], to=1),
        node("MatMul", ["f", "w"], ["y"]),
    ]
    return model(nodes, {"a": (dtype, ["n", 1]), "b": (dtype, ["n", 5])}, {"y": (f32, ["n", 3])}, {"w": weights(5, 3)})


def ask(path: Path, engine: Run, **request: np.ndarray) -> tuple[str, ...]:
    return bounds(engine, path, request, LIMITS["fp32"], 1)


@pytest.mark.parametrize("activation", ["Relu", "Tanh", "Sigmoid"])
def test_an_engine_that_swallows_what_is_not_finite_is_found(tmp_path: Path, activation: str) -> None:
    path = save(tmp_path / "m.onnx", features(activation))
    right = plain_session(path, 1)

    def swallowing(request: Tensors) -> Tensors:
        return right({name: np.nan_to_num(array) for name, array in request.items()})

    def refusing(request: Tensors) -> Tensors:
        if not all(np.isfinite(array).all() for array in request.values()):
            raise InferenceFailed("not finite")
        return right(request)

    assert ask(path, right, x=weights(4, 6)) == ()
    assert ask(path, swallowing, x=weights(4, 6)) == ("finite",)
    assert ask(path, refusing, x=weights(4, 6)) == ()


@pytest.mark.parametrize("comparison", ["Equal", "Sub", "Less"])
@pytest.mark.parametrize("dtype", [i64, np.int32])
def test_an_engine_that_takes_neighbouring_ids_for_one_is_found(tmp_path: Path, comparison: str, dtype: Any) -> None:
    path = save(tmp_path / "m.onnx", ids(comparison, dtype))
    right = plain_session(path, 1)

    def in_fp32(request: Tensors) -> Tensors:
        return right({name: array.astype(f32).astype(dtype) for name, array in request.items()})

    few = {"a": np.arange(4, dtype=dtype)[:, None], "b": np.arange(20, dtype=dtype).reshape(4, 5)}
    assert ask(path, right, **few) == ()
    assert ask(path, in_fp32, **few) == ("below-2^24",)


@pytest.mark.parametrize("kind", ["shape", "table"])
def test_no_large_number_is_asked_for_where_it_would_be_a_size(tmp_path: Path, kind: str) -> None:
    if kind == "shape":
        nodes = [node("Expand", ["x", "size"], ["y"])]
        proto = model(nodes, {"x": (f32, [1, 1]), "size": (i64, [2])}, {"y": (f32, ["a", "b"])})
        request = {"x": weights(1, 1), "size": np.array([2, 3])}
    else:
        nodes = [node("Gather", ["table", "id"], ["y"])]
        proto = model(nodes, {"id": (i64, ["n"])}, {"y": (f32, ["n", 4])}, {"table": weights(9, 4)})
        request = {"id": np.array([2, 3])}
    path = save(tmp_path / "m.onnx", proto)
    right = plain_session(path, 1)
    largest = 0

    def watched(given: Tensors) -> Tensors:
        nonlocal largest
        largest = max(largest, *(int(array.max()) for array in given.values() if array.dtype.kind == "i"))
        return right(given)

    assert ask(path, watched, **request) == ()
    assert largest < 2**24
