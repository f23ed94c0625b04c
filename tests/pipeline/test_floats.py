"""Floats that samples never have (of the other sign, between theirs, halves, -0) are asked, and bound what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from enginehouse.contract import probes
from enginehouse.contract.bounds import InputBounds, Region, Values, described, narrower
from enginehouse.contract.manifest import Artifact
from enginehouse.contract.parity import first_difference
from enginehouse.contract.tensors import Tensors

from .graphs import f32, model, node
from .test_probes import ARTIFACT, Run, made
from .test_scales import engine_of

BYTE = [node("Cast", ["x"], ["u"], to=TensorProto.UINT8), node("Cast", ["u"], ["f"], to=TensorProto.FLOAT)]
HALF = np.array(0.5, f32)


def of(*nodes: onnx.NodeProto, **parts: np.ndarray) -> onnx.ModelProto:
    return model(list(nodes), {"x": (f32, ["n", 6])}, {"y": (f32, ["n", 6])}, parts)


def cast(to: int) -> onnx.ModelProto:
    steps = node("Cast", ["x"], ["u"], to=to), node("Cast", ["u"], ["f"], to=TensorProto.FLOAT)
    return of(*steps, node("Mul", ["f", "half"], ["y"]), half=HALF)


def plain(op: str, **attributes: Any) -> onnx.ModelProto:
    return of(node(op, ["x"], ["h"], **attributes), node("Mul", ["h", "half"], ["y"]), half=HALF)


#: What OpenVINO answers otherwise than ONNX Runtime beyond the samples, and what it answers alike.
GRAPHS = {
    "bytes": cast(TensorProto.UINT8),
    "signed bytes": cast(TensorProto.INT8),
    "16 bits": cast(TensorProto.UINT16),
    "16 signed bits": cast(TensorProto.INT16),
    "32 unsigned bits": cast(TensorProto.UINT32),
    "32 bits": cast(TensorProto.INT32),
    "64 bits": cast(TensorProto.INT64),
    "truth": cast(TensorProto.BOOL),
    "bytes shifted": of(
        *BYTE[:1],
        node("BitShift", ["u", "by"], ["s"], direction="LEFT"),
        node("Cast", ["s"], ["y"], to=TensorProto.FLOAT),
        by=np.array(1, np.uint8),
    ),
    "bytes by 7": of(
        *BYTE[:1],
        node("Mod", ["u", "by"], ["s"]),
        node("Cast", ["s"], ["y"], to=TensorProto.FLOAT),
        by=np.array(7, np.uint8),
    ),
    "quantized": of(
        node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        scale=np.array(0.5, f32),
        zero=np.array(3, np.uint8),
    ),
    "fmod": of(node("Mod", ["x", "by"], ["y"], fmod=1), by=np.array(3, f32)),
    "cubes": of(node("Pow", ["x", "e"], ["y"]), e=np.array(3, f32)),
    "behind a sign": of(
        node("Neg", ["x"], ["h"]), node("Sqrt", ["h"], ["s"]), node("Mul", ["s", "half"], ["y"]), half=HALF
    ),
    **{op.lower(): plain(op) for op in ("Round", "Floor", "Ceil", "Sqrt", "Log", "Sign", "Reciprocal", "Abs", "Relu")},
}
#: Which samples there are. Those that an engine answers otherwise itself are for the gate.
SAMPLES = {
    "positive": lambda generator: generator.uniform(0, 120, (40, 6)),
    "small": lambda generator: generator.uniform(0, 1, (40, 6)),
    "whole": lambda generator: generator.integers(0, 128, (40, 6)),
    "far from 0": lambda generator: generator.uniform(70, 120, (40, 6)),
}


def asked() -> Tensors:
    """Values of either sign up to 2^14: fractions, halves, whole numbers, zeros."""
    generator = np.random.default_rng(11)
    sizes = [generator.uniform(0, 1, (2, 6)), *(2.0**at * generator.uniform(1, 2, (2, 6)) for at in range(14))]
    sizes += [np.floor(each) + part for each in sizes[:12] for part in (0, 0.5)]
    return {"x": np.concatenate([sign * each for each in sizes for sign in (1, -1)]).astype(f32)}


@pytest.mark.parametrize("given", SAMPLES)
@pytest.mark.parametrize("name", GRAPHS)
def test_within_its_bounds_an_artifact_answers_as_the_reference_does(tmp_path: Path, name: str, given: str) -> None:
    samples = {"x": SAMPLES[given](np.random.default_rng(2)).astype(f32)}
    right, probed = made(tmp_path, GRAPHS[name], samples)
    with engine_of(tmp_path, GRAPHS[name]) as infer:
        bounds, faults = probes.found("openvino-cpu", infer, ARTIFACT, probed)
        assert not Values(samples).beyond(bounds), (described(bounds), faults)
        for row in asked()["x"]:
            request = {"x": row[None]}
            if not Values(request).beyond(bounds):
                fault = first_difference(infer(request), right(request), 1e-3, 1e-3)
                assert fault is None, (row, described(bounds), fault)


@pytest.mark.parametrize(("name", "least"), [("bytes", 0), ("16 bits", 0), ("bytes shifted", 0), ("bytes by 7", 0)])
def test_a_cast_of_negative_numbers_binds_by_sign(tmp_path: Path, name: str, least: int) -> None:
    samples = {"x": SAMPLES["positive"](np.random.default_rng(2)).astype(f32)}
    _, probed = made(tmp_path, GRAPHS[name], samples)
    with engine_of(tmp_path, GRAPHS[name]) as infer:
        bounds, _ = probes.found("openvino-cpu", infer, ARTIFACT, probed)
        int8 = Artifact(name="openvino-int8", format="openvino", precision="int8", status="ready")
        of_int8, _ = probes.found("openvino-cpu", infer, int8, probed)
    for each in (bounds["x"], of_int8["x"]):
        assert isinstance(each, Region)
        assert each.at_least == least
    assert "at least 0" in described(bounds)


def test_int8_is_not_asked_the_other_sign_of_what_is_not_cast(tmp_path: Path) -> None:
    _, probed = made(tmp_path, GRAPHS["sqrt"], {"x": SAMPLES["positive"](np.random.default_rng(2)).astype(f32)})
    int8 = Artifact(name="openvino-int8", format="openvino", precision="int8", status="ready")
    signed = [each for each in probed if each.request and (each.request["x"] < 0).any() and not each.beside]
    assert signed
    assert not any(each.is_asked(int8) for each in signed if np.isfinite(each.request["x"]).all())  # type: ignore[index]


#: Engines that are wrong for one kind of values alone, as none at hand is.
WRONG = {
    "rounds halves away": ("round", lambda x, y: np.where(x - np.trunc(x) == 0.5, np.floor(x + 0.5) / 2, y)),
    "loses the sign of 0": ("reciprocal", lambda x, y: np.where(x == 0, f32(np.inf), y)),
    "takes what is next to 1 for 1": ("floor", lambda x, y: np.floor(x + f32(0.02)) / 2),
    "cuts below 0": ("abs", lambda x, y: np.where(x < 0, 0, y)),
    "cuts fractions below 0": ("abs", lambda x, y: np.where((x < 0) & (x > -1), 0, y)),
    "wraps in a window": ("abs", lambda x, y: np.where((x < -300) & (x > -500), -y, y)),
}


@pytest.mark.parametrize("what", WRONG)
def test_each_kind_of_values_is_asked_by_itself(tmp_path: Path, what: str) -> None:
    name, wrong = WRONG[what]
    samples = {"x": np.random.default_rng(2).uniform(0.1, 20, (40, 6)).astype(f32)}
    right, probed = made(tmp_path, GRAPHS[name], samples)

    def infer(request: Tensors) -> Tensors:
        return {"y": wrong(request["x"], right(request)["y"]).astype(f32)}

    bounds, _ = probes.found("openvino-cpu", infer, ARTIFACT, probed)
    assert bounds, what
    assert not probes.found("openvino-cpu", right, ARTIFACT, probed)[0]


def test_a_column_that_alone_is_cast_is_asked_too(tmp_path: Path) -> None:
    for column in range(6):
        folder = tmp_path / str(column)
        folder.mkdir()
        samples = {"x": np.random.default_rng(2).uniform(0, 120, (40, 6)).astype(f32)}
        right, probed = made(folder, plain("Abs"), samples)

        def infer(request: Tensors, right: Run = right, column: int = column) -> Tensors:
            answer = right(request)["y"].copy()
            answer[:, column] *= np.sign(request["x"][:, column])
            return {"y": answer}

        bounds, _ = probes.found("openvino-cpu", infer, ARTIFACT, probed)
        assert isinstance(bounds["x"], Region)
        assert bounds["x"].at_least is not None, column


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, f32, np.float64])
def test_floats_have_ends_and_nan_is_within_none(dtype: Any) -> None:
    bounds: InputBounds = {"x": Region(at_least=0, less_than=256)}
    inside = ([0.0, 255.0], [-0.0, 3.5], [1.0, 1.0])
    outside = ([0.5, -0.5], [np.nan, 1.0], [1.0, -np.nan], [np.inf, 1.0], [-np.inf, 1.0], [256.0, 1.0], [-3.0, -2.0])
    for each in inside:
        assert not Values({"x": np.array(each, dtype)}).beyond(bounds), each
        assert not Values({"x": np.array(each, dtype)}).place(bounds), each
    for each in outside:
        assert Values({"x": np.array(each, dtype)}).beyond(bounds), each
        assert Values({"x": np.array(each, dtype)}).place(bounds), each
    assert Values({"x": np.array([-3, -2], dtype)}).beyond({"x": Region(less_than=-1)}) == ""
    assert narrower({"x": "finite"}, bounds) == bounds


def test_a_loop_is_asked_no_fractions_that_might_keep_it_turning(tmp_path: Path) -> None:
    body = onnx.helper.make_graph(
        [node("Identity", ["go"], ["on"]), node("Add", ["c", "c"], ["d"])],
        "body",
        [
            onnx.helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            onnx.helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            onnx.helper.make_tensor_value_info("c", TensorProto.FLOAT, None),
        ],
        [
            onnx.helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            onnx.helper.make_tensor_value_info("d", TensorProto.FLOAT, None),
        ],
    )
    proto = of(node("Loop", ["times", "start", "x"], ["y"], body=body))
    proto.graph.initializer.append(numpy_helper.from_array(np.array(2), "times"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "start"))
    _, probed = made(tmp_path, proto, {"x": np.random.default_rng(2).uniform(1, 20, (40, 6)).astype(f32)})
    finite = [each.request["x"] for each in probed if each.request and np.isfinite(each.request["x"]).all()]
    assert all((np.abs(x) >= 1).all() for x in finite)
