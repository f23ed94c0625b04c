"""Engines that silently answer some values otherwise than the reference are found out, whatever the samples are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from enginehouse.contract import probes
from enginehouse.contract.bounds import InputBounds, Region
from enginehouse.contract.errors import InferenceFailed
from enginehouse.contract.manifest import Artifact, EngineKind
from enginehouse.contract.probes import Probe
from enginehouse.contract.tensors import Tensors
from enginehouse.engines import EngineOptions
from enginehouse.engines.openvino import OpenVinoCpu
from enginehouse_build.convert import openvino as for_openvino
from enginehouse_build.reference.onnx import plain_session, signature_of
from enginehouse_build.reference.probes import make

from .graphs import f32, i64, model, node, save, weights

Run = Callable[[Tensors], Tensors]

ARTIFACT = Artifact(name="openvino-fp32", format="openvino", precision="fp32", status="ready")


def features(*activation: onnx.NodeProto, **constants: np.ndarray) -> onnx.ModelProto:
    """`activation` of h, which is called a, between two products."""
    nodes = [node("MatMul", ["x", "w1"], ["h"]), *activation, node("MatMul", ["a", "w2"], ["y"])]
    parts = {"w1": weights(6, 8), "w2": weights(8, 3), **constants}
    return model(nodes, {"x": (f32, ["n", 6])}, {"y": (f32, ["n", 3])}, parts)


def plain(op: str) -> onnx.ModelProto:
    return features(node(op, ["h"], ["a"]))


def ids(operator: str, dtype: Any) -> onnx.ModelProto:
    nodes = [
        node(operator, ["a", "b"], ["same"]),
        node("Cast", ["same"], ["f"], to=1),
        node("MatMul", ["f", "w"], ["y"]),
    ]
    return model(nodes, {"a": (dtype, ["n", 1]), "b": (dtype, ["n", 5])}, {"y": (f32, ["n", 3])}, {"w": weights(5, 3)})


def few(dtype: Any) -> Tensors:
    generator = np.random.default_rng(3)
    return {
        "a": generator.integers(1, 50, (40, 1)).astype(dtype),
        "b": generator.integers(1, 50, (40, 5)).astype(dtype),
    }


def made(folder: Path, proto: onnx.ModelProto, samples: Tensors) -> tuple[Run, list[Probe]]:
    """The reference, and its probes as a bundle carries them."""
    session = plain_session(save(folder / "m.onnx", proto), 1)

    def right(request: Tensors) -> Tensors:
        try:
            return session(request)
        except Exception as error:
            raise InferenceFailed(str(error)) from None

    probes.write(folder / "probes.npz", make(right, proto, samples, signature_of(proto, True)))
    return right, probes.read(folder / "probes.npz")


def on_openvino(folder: Path, proto: onnx.ModelProto, samples: Tensors) -> tuple[InputBounds, str]:
    _, probed = made(folder, proto, samples)
    (folder / "ir").mkdir()
    for_openvino.convert(folder / "m.onnx", folder / "ir", "fp32", ())
    files = sorted((folder / "ir").iterdir())
    engine = OpenVinoCpu(
        EngineOptions(files=files, artifact=ARTIFACT, signature=signature_of(proto, True), max_rows=64, threads=1)
    )
    try:
        bounds, faults = probes.found("openvino-cpu", engine.infer, ARTIFACT, probed)
    finally:
        engine.close()
    return bounds, "; ".join(faults)


SWALLOWED = {
    "Relu": plain("Relu"),
    "Clip": features(node("Clip", ["h", "low", "high"], ["a"]), low=np.array(-1, f32), high=np.array(1, f32)),
    "Max": features(node("Max", ["h", "low"], ["a"]), low=np.array(-1, f32)),
    "Celu": plain("Celu"),
    "HardSigmoid": plain("HardSigmoid"),
    "greater": features(node("Greater", ["h", "low"], ["k"]), node("Cast", ["k"], ["a"], to=1), low=np.array(-1, f32)),
}


@pytest.mark.parametrize("name", SWALLOWED)
def test_openvino_is_right_for_finite_values_where_it_swallows_what_is_none(tmp_path: Path, name: str) -> None:
    bounds, fault = on_openvino(tmp_path, SWALLOWED[name], {"x": weights(40, 6)})
    assert bounds == {"x": "finite"}
    assert "in 'x' its output 'y' differs" in fault


@pytest.mark.parametrize("name", ["Tanh", "Sigmoid", "Softplus"])
def test_openvino_is_right_for_every_value_where_it_hands_them_on(tmp_path: Path, name: str) -> None:
    assert on_openvino(tmp_path, plain(name), {"x": weights(40, 6)}) == ({}, "")


#: int64 is computed in 32 bits; what is compared or divided, in fp32. Products and sums leave 32 bits much earlier.
WHOLE = {
    ("Equal", i64): 2**24,
    ("Equal", np.int32): 2**24,
    ("Less", i64): 2**24,
    ("Div", np.int32): 2**24,
    ("Mul", i64): 2**15,
    ("Add", i64): 2**30,
    ("Sub", i64): 2**30,
    ("Max", i64): 2**31,
    ("Max", np.int32): None,
    ("Sub", np.int32): None,
}


@pytest.mark.parametrize(("operator", "dtype"), WHOLE)
def test_openvino_is_right_for_whole_numbers_as_far_as_it_tells_them_apart(
    tmp_path: Path, operator: str, dtype: Any
) -> None:
    bounds, _ = on_openvino(tmp_path, ids(operator, dtype), few(dtype))
    known = WHOLE[operator, dtype]
    # What the reference refuses to divide by is left to it.
    of_b = Region(below=known, not_zero=((),)) if operator == "Div" else known
    assert bounds == ({} if known is None else {"a": known, "b": of_b})


@pytest.mark.parametrize("rows", [100, 3000])
def test_what_the_reference_refuses_is_asked_of_no_engine_that_may_answer(tmp_path: Path, rows: int) -> None:
    # Beyond the door's knowledge: what is looked up was computed.
    nodes = [node("Add", ["id", "one"], ["i"]), node("Gather", ["table", "i"], ["y"])]
    parts = {"table": weights(rows, 4), "one": np.array(1)}
    proto = model(nodes, {"id": (i64, ["n"])}, {"y": (f32, ["n", 4])}, parts)
    samples = np.arange(rows * 3 // 4)
    bounds, fault = on_openvino(tmp_path, proto, {"id": samples})
    bound = bounds["id"]
    assert isinstance(bound, int)
    assert samples.max() < bound < rows
    assert "the reference refuses the request" in fault


def test_an_engine_of_the_references_library_that_answers_what_it_refuses_is_found(tmp_path: Path) -> None:
    nodes = [node("Add", ["id", "one"], ["i"]), node("Gather", ["table", "i"], ["y"])]
    parts = {"table": weights(100, 4), "one": np.array(1)}
    proto = model(nodes, {"id": (i64, ["n"])}, {"y": (f32, ["n", 4])}, parts)
    right, probed = made(tmp_path, proto, {"id": np.arange(90)})

    def clamping(request: Tensors) -> Tensors:
        return right({"id": np.clip(request["id"], -100, 98)})

    bounds, faults = probes.found("onnxruntime-cuda", clamping, ARTIFACT, probed)
    assert bounds == {"id": 90}
    assert "it answers what the reference refuses" in faults[0]
    assert probes.found("onnxruntime-cpu", right, ARTIFACT, probed) == ({}, ())


def test_floats_that_become_whole_numbers_have_a_range(tmp_path: Path) -> None:
    proto = model(
        [node("Cast", ["x"], ["i"], to=7), node("Cast", ["i"], ["y"], to=1)],
        {"x": (f32, ["n", 3])},
        {"y": (f32, ["n", 3])},
    )
    assert on_openvino(tmp_path, proto, {"x": weights(40, 3)})[0] == {"x": 2**31}


def test_only_the_input_that_is_at_fault_is_bounded(tmp_path: Path) -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Tanh", ["z"], ["b"]), node("Add", ["a", "b"], ["y"])]
    proto = model(nodes, {"x": (f32, ["n", 3]), "z": (f32, ["n", 3])}, {"y": (f32, ["n", 3])})
    samples = {"x": weights(9, 3), "z": weights(9, 3, seed=8)}
    assert on_openvino(tmp_path, proto, samples)[0] == {"x": "finite"}


@pytest.mark.parametrize("kind", ["swallowing", "refusing", "in fp16", "right"])
def test_engines_that_differ_in_other_ways_are_found(tmp_path: Path, kind: str) -> None:
    right, probed = made(tmp_path, plain("Tanh"), {"x": weights(40, 6)})

    def infer(request: Tensors) -> Tensors:
        if kind == "refusing" and not all(np.isfinite(array).all() for array in request.values()):
            raise InferenceFailed("not finite")
        if kind == "swallowing":
            return right({name: np.nan_to_num(array) for name, array in request.items()})
        if kind == "in fp16":
            with np.errstate(over="ignore"):
                return right({name: array.astype(np.float16).astype(f32) for name, array in request.items()})
        return right(request)

    wanted: dict[str, InputBounds] = {
        "swallowing": {"x": "finite"},
        "refusing": {"x": "finite"},
        "in fp16": {"x": 2**15},
        "right": {},
    }
    artifact = ARTIFACT.model_copy(update={"precision": "fp16"})
    assert probes.found("tensorrt", infer, artifact, probed)[0] == wanted[kind]


@pytest.mark.parametrize("dtype", [i64, np.int32, np.uint32])
def test_an_engine_that_takes_neighbouring_ids_for_one_is_found(tmp_path: Path, dtype: Any) -> None:
    right, probed = made(tmp_path, ids("Equal", dtype), few(dtype))

    def within(bits: type) -> Run:
        def infer(request: Tensors) -> Tensors:
            with np.errstate(over="ignore", invalid="ignore"):
                return right({name: array.astype(bits).astype(dtype) for name, array in request.items()})

        return infer

    def bounds(infer: Run) -> InputBounds:
        return probes.found("onnxruntime-cpu", infer, ARTIFACT, probed)[0]

    assert bounds(right) == {}
    assert bounds(within(np.float32)) == {"a": 2**24, "b": 2**24}
    assert bounds(within(np.float16)) == {"a": 2**11, "b": 2**11}


def test_samples_with_large_ids_prove_nothing_about_their_neighbours(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    samples = {name: generator.integers(3 * 10**7, 2 * 10**9, (40, width)) for name, width in (("a", 1), ("b", 5))}
    bounds, fault = on_openvino(tmp_path, ids("Equal", i64), samples)
    assert bounds == {"a": 2**24, "b": 2**24}
    assert "neighbours below 2^28" in fault


@pytest.mark.parametrize("kind", ["shape", "table"])
def test_no_large_number_is_asked_for_where_it_would_be_a_size(tmp_path: Path, kind: str) -> None:
    if kind == "shape":
        nodes = [node("Expand", ["x", "size"], ["y"])]
        proto = model(nodes, {"x": (f32, ["n", 1]), "size": (i64, ["n"])}, {"y": (f32, ["a", "b"])})
        samples = {"x": weights(2, 1), "size": np.array([2, 3])}
    else:
        nodes = [node("Gather", ["table", "id"], ["y"])]
        proto = model(nodes, {"id": (i64, ["n"])}, {"y": (f32, ["n", 4])}, {"table": weights(9, 4)})
        samples = {"id": np.array([2, 3])}
    right, probed = made(tmp_path, proto, samples)
    largest = 0

    def watched(given: Tensors) -> Tensors:
        nonlocal largest
        largest = max([largest, *(int(array.max()) for array in given.values() if array.dtype.kind == "i")])
        return right(given)

    kinds: tuple[EngineKind, ...] = ("onnxruntime-cpu", "openvino-cpu")
    found = [probes.found(each, watched, ARTIFACT, probed) for each in kinds]
    assert largest < 2**24
    assert found[0] == ({}, ())
    if kind == "shape":
        # What cannot be tried is not known to be right.
        assert found[1] == ({"size": 2**24}, ("nothing larger was tried: Expand 'y' may make a size of it",))
    else:
        assert found[1] == ({}, ()), "its domain is checked at the door"


def test_a_bundle_carries_as_many_probes_as_it_has_room_for(tmp_path: Path) -> None:
    _, probed = made(tmp_path, plain("Relu"), {"x": weights(40, 6)})
    assert probes.kept(probed, 1 << 20) == probed
    few_bytes = probes.kept(probed, 500)
    assert 0 < len(few_bytes) < len(probed)
    assert few_bytes[0].values == "NaN"
