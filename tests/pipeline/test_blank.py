"""Blank rows, channels and masks: what is 0 / 0 there is answered as the reference does, or not at all."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from enginehouse.contract import probes
from enginehouse.contract.bounds import InputBounds, Region, Values
from enginehouse.contract.parity import first_difference
from enginehouse.contract.tensors import Tensors
from enginehouse.engines import Engine, EngineOptions
from enginehouse.engines.openvino import OpenVinoCpu
from enginehouse_build.convert import openvino as for_openvino
from enginehouse_build.reference.onnx import signature_of

from .graphs import f32, i64, model, node, weights
from .test_probes import ARTIFACT, Run, made

SHAPES: dict[int, tuple[int, ...]] = {2: (8,), 3: (5, 8), 4: (3, 4, 5)}
#: What is computed of a NaN, and swallows it on OpenVINO.
SWALLOW: dict[str, list[onnx.NodeProto]] = {
    "Relu": [node("Relu", ["d"], ["a"])],
    "Greater": [node("Greater", ["d", "least"], ["k"]), node("Cast", ["k"], ["a"], to=1)],
    "Max": [node("Max", ["d", "least"], ["a"])],
}


def normalised(dims: int, over: tuple[int, ...], by: str, swallow: str) -> onnx.ModelProto:
    """x in `dims` dimensions divided by its own size, or spread, along the axes `over`."""
    shape: list[int | str] = ["n", *SHAPES[dims]]
    axes = np.array(over)
    if by == "length":
        nodes = [node("ReduceL2", ["x", "axes"], ["s"]), node("Div", ["x", "s"], ["d"])]
    elif by == "sum":
        nodes = [node("ReduceL1", ["x", "axes"], ["s"]), node("Div", ["x", "s"], ["d"])]
    elif by == "largest":
        nodes = [node("Abs", ["x"], ["b"]), node("ReduceMax", ["b", "axes"], ["s"]), node("Div", ["x", "s"], ["d"])]
    else:
        nodes = [
            node("ReduceMean", ["x", "axes"], ["m"]),
            node("Sub", ["x", "m"], ["c"]),
            node("ReduceL2", ["c", "axes"], ["s"]),
            node("Div", ["c", "s"], ["d"]),
        ]
    parts = {"axes": axes, "least": np.array(0.1, f32)}
    nodes = [*nodes, *SWALLOW[swallow], node("Add", ["a", "a"], ["y"])]
    return model(nodes, {"x": (f32, shape)}, {"y": (f32, shape)}, parts)


def masked() -> onnx.ModelProto:
    """Attention in which nothing is left of a row that is hidden altogether."""
    nodes = [
        node("MatMul", ["x", "wq"], ["q"]),
        node("Transpose", ["x"], ["xt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "xt"], ["s"]),
        node("Unsqueeze", ["mask", "one"], ["shown"]),
        node("Where", ["shown", "s", "low"], ["left"]),
        node("Softmax", ["left"], ["p"], axis=-1),
        node("MatMul", ["p", "x"], ["o"]),
        node("Relu", ["o"], ["y"]),
    ]
    parts = {"wq": weights(8, 8), "low": np.array(-np.inf, f32), "one": np.array([1])}
    inputs = {"x": (f32, ["n", "t", 8]), "mask": (np.bool_, ["n", "t"])}
    return model(nodes, inputs, {"y": (f32, ["n", "t", 8])}, parts)


def pooled(smallest: float) -> onnx.ModelProto:
    """The mean of the steps that a mask of 0 and 1 shows; `smallest` keeps it from dividing by 0."""
    nodes = [
        node("Cast", ["mask"], ["m"], to=1),
        node("Unsqueeze", ["m", "two"], ["m2"]),
        node("Mul", ["x", "m2"], ["shown"]),
        node("ReduceSum", ["shown", "one"], ["sum"], keepdims=0),
        node("ReduceSum", ["m", "one"], ["count"], keepdims=1),
        node("Max", ["count", "smallest"], ["some"]),
        node("Div", ["sum", "some"], ["mean"]),
        node("Relu", ["mean"], ["y"]),
    ]
    parts = {"one": np.array([1]), "two": np.array([2]), "smallest": np.array(smallest, f32)}
    return model(nodes, {"x": (f32, ["n", 6, 8]), "mask": (i64, ["n", 6])}, {"y": (f32, ["n", 8])}, parts)


def shares() -> onnx.ModelProto:
    nodes = [
        node("Div", ["clicks", "shows"], ["d"]),
        node("Greater", ["d", "c"], ["g"]),
        node("Cast", ["g"], ["y"], to=1),
    ]
    inputs = {"clicks": (f32, ["n", 8]), "shows": (f32, ["n", 8])}
    return model(nodes, inputs, {"y": (f32, ["n", 8])}, {"c": np.array(0.1, f32)})


def steps(rows: int, seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    mask = generator.random((rows, 6)) < 0.7
    mask[:, 0] = True
    return {"x": generator.standard_normal((rows, 6, 8)).astype(f32), "mask": mask}


@contextmanager
def on_openvino(folder: Path, proto: onnx.ModelProto, samples: Tensors) -> Iterator[tuple[Run, Engine, InputBounds]]:
    """The reference, OpenVINO, and for which values that was found to be right."""
    right, probed = made(folder, proto, samples)
    (folder / "ir").mkdir()
    for_openvino.convert(folder / "m.onnx", folder / "ir", "fp32", ())
    files = sorted((folder / "ir").iterdir())
    signature = signature_of(proto, True)
    engine = OpenVinoCpu(EngineOptions(files=files, artifact=ARTIFACT, signature=signature, max_rows=64, threads=1))
    try:
        bounds, _ = probes.found("openvino-cpu", engine.infer, ARTIFACT, probed)
        yield right, engine, bounds
    finally:
        engine.close()


def wrong(right: Run, engine: Engine, bounds: InputBounds, request: Tensors) -> str | None:
    """How the engine's answer differs; None where it is right, or is not asked."""
    if Values(request).beyond(bounds):
        return None
    return first_difference(engine.infer(request), right(request), 1e-3, 1e-3)


def blanks(dims: int) -> Iterator[np.ndarray]:
    """Fresh inputs with something blank in one row or in all: a row, a channel, a line, with 0 or another value."""
    generator = np.random.default_rng(5)
    for rows in (1, 3):
        for value in (0.0, -0.0, 1.0, 3.7, -250.0):
            for depth in range(1, dims):
                x = generator.standard_normal((rows, *SHAPES[dims])).astype(f32)
                x[(0, *(generator.integers(0, size) for size in x.shape[1:depth]))] = value
                yield x
                if dims > 2:
                    x = generator.standard_normal((rows, *SHAPES[dims])).astype(f32)
                    x[(-1, slice(None), *(0 for _ in x.shape[2:]))] = value
                    yield x


OVER = [(2, (1,)), (3, (1, 2)), (3, (2,)), (3, (1,)), (4, (2, 3)), (4, (1,))]
KINDS = list(itertools.product(OVER, ["length", "sum", "largest", "spread"]))


@pytest.mark.parametrize(
    ("dims", "over", "by", "swallow"),
    [(*over, by, swallow) for (over, by), swallow in zip(KINDS, itertools.cycle([*SWALLOW, "Relu"]), strict=False)],
)
def test_what_is_divided_by_its_own_size_is_not_asked_for_where_that_is_0(
    tmp_path: Path, dims: int, over: tuple[int, ...], by: str, swallow: str
) -> None:
    samples = {"x": weights(24, *SHAPES[dims])}
    with on_openvino(tmp_path, normalised(dims, over, by, swallow), samples) as (right, engine, bounds):
        for x in blanks(dims):
            assert wrong(right, engine, bounds, {"x": x}) is None
        for seed in range(3):
            assert not Values({"x": weights(4, *SHAPES[dims], seed=seed)}).beyond(bounds), "it answers ordinary rows"


def test_a_mask_that_hides_all_is_not_asked_for_where_nothing_is_left(tmp_path: Path) -> None:
    with on_openvino(tmp_path, masked(), steps(24, 0)) as (right, engine, bounds):
        assert bounds["mask"] == Region(not_zero=((1,),))
        for seed in range(1, 4):
            request = steps(4, seed)
            assert not Values(request).beyond(bounds)
            request["mask"][seed % 4] = False
            assert Values(request).beyond(bounds) == "input 'mask' has 0 all along axis 1"
            request["mask"][:] = True
            assert not Values(request).beyond(bounds)
            assert wrong(right, engine, bounds, request) is None


@pytest.mark.parametrize("smallest", [0.0, 1e-9])
def test_the_mean_of_no_steps_is_only_left_to_the_reference_where_it_is_none(tmp_path: Path, smallest: float) -> None:
    samples = steps(24, 0)
    samples["mask"] = samples["mask"].astype(i64)
    with on_openvino(tmp_path, pooled(smallest), samples) as (right, engine, bounds):
        bound = bounds.get("mask")
        assert (isinstance(bound, Region) and bound.not_zero == ((1,),)) == (smallest == 0)
        request = {"x": weights(4, 6, 8), "mask": np.eye(4, 6, 1).astype(i64)}
        request["mask"][2] = 0
        assert wrong(right, engine, bounds, request) is None


def test_of_inputs_that_must_not_be_0_together_one_is_bound(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    shows = generator.integers(1, 50, (64, 8)).astype(f32)
    samples = {"clicks": np.floor(shows * generator.random((64, 8))).astype(f32), "shows": shows}
    with on_openvino(tmp_path, shares(), samples) as (right, engine, bounds):
        some = {name: array[:4].copy() for name, array in samples.items()}
        assert not Values(some).beyond(bounds)
        for array in some.values():
            array[:, 3] = 0
        assert wrong(right, engine, bounds, some) is None
        bound = bounds["shows"]
        assert isinstance(bound, Region)
        assert bound.not_zero == ((),)
        assert not isinstance(bounds["clicks"], Region)


HEALTHY: dict[str, list[onnx.NodeProto]] = {
    "linear": [node("MatMul", ["x", "w"], ["y"])],
    "softmax": [node("Softmax", ["x"], ["p"], axis=-1), node("MatMul", ["p", "w"], ["y"])],
    "layer": [node("LayerNormalization", ["x", "one", "zero"], ["h"], axis=-1), node("MatMul", ["h", "w"], ["y"])],
    "tanh": [node("MatMul", ["x", "w"], ["h"]), node("Tanh", ["h"], ["y"])],
}


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("dims", [2, 3])
def test_nothing_changes_where_answers_to_blanks_agree(tmp_path: Path, name: str, dims: int) -> None:
    shape = SHAPES[dims]
    parts: dict[str, Any] = {"w": weights(8, 4), "one": np.ones(8, f32), "zero": weights(8)}
    outputs: list[int | str] = ["n", *shape[:-1], 4]
    proto = model(HEALTHY[name], {"x": (f32, ["n", *shape])}, {"y": (f32, outputs)}, parts)
    with on_openvino(tmp_path, proto, {"x": weights(24, *shape)}) as (_, _, bounds):
        assert not any(isinstance(bound, Region) for bound in bounds.values())
