"""Whole numbers at the largest extents: right there too, beyond the bounds, or the artifact is not served at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from enginehouse.contract.bounds import Values
from enginehouse.contract.errors import ParityFailed
from enginehouse.contract.manifest import SignatureRecord
from enginehouse.contract.parity import LIMITS
from enginehouse.contract.tensors import Tensors
from enginehouse_build.judge.beyond import Beyond
from enginehouse_build.judge.longest import as_samples_may_be, narrowed
from enginehouse_build.judge.rounding import Rounding
from enginehouse_build.reference.onnx import signature_of

from .graphs import i64, model, node
from .test_blank import on_openvino, wrong
from .test_probes import ARTIFACT
from .test_tried_extents import manifest_of

SIZE = 8
SUMS: dict[str, list[onnx.NodeProto]] = {
    "total": [node("ReduceSum", ["x", "last"], ["y"], keepdims=1)],
    "digit": [node("ReduceSum", ["x", "last"], ["s"], keepdims=1), node("Mod", ["s", "ten"], ["y"])],
    "doubled": [node("Add", ["x", "x"], ["d"]), node("ReduceSum", ["d", "last"], ["y"], keepdims=1)],
    "running": [node("CumSum", ["x", "axis"], ["y"])],
    "longest": [node("ReduceMax", ["x", "last"], ["y"], keepdims=1)],
}


def summing(name: str, dtype: Any) -> onnx.ModelProto:
    nodes = [node("Cast", ["x"], ["wide"], to=onnx.TensorProto.INT64), *SUMS[name]]
    for each in nodes[1:]:
        each.input[:] = ["wide" if given == "x" else given for given in each.input]
    constants = {"last": np.array([1]), "axis": np.array(1), "ten": np.array(10)}
    return model(nodes, {"x": (dtype, ["n", "t"])}, {"y": (i64, ["n", None])}, constants)


@pytest.mark.parametrize("largest", [40, 1000, 30_000, 2**21])
@pytest.mark.parametrize("declared", [{}, {"t": (1, SIZE, 2000)}])
@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name in SUMS for dtype in (np.int32, i64)])
def test_long_sums_of_large_numbers_are_right_or_beyond_what_an_artifact_answers(
    name: str, dtype: Any, declared: dict[str, tuple[int, int, int]], largest: int, tmp_path: Path
) -> None:
    proto = summing(name, dtype)
    samples = {"x": np.random.default_rng(0).integers(0, largest, (32, SIZE)).astype(dtype)}
    manifest = manifest_of({"t": SIZE}, declared, SignatureRecord.of(signature_of(proto, True)))
    with on_openvino(tmp_path, proto, samples) as (right, engine, found):
        path = tmp_path / "m.onnx"
        beyond = Beyond(ARTIFACT, manifest, engine.infer, right, path, samples, LIMITS["fp32"], Rounding(path, 1))
        try:
            reached = beyond.check()
        except ParityFailed:
            # Of small numbers no sum is too long.
            assert largest > 1000 and name != "longest"
            return
        assert reached.longest is not None
        bounds, faults = narrowed(
            "openvino-cpu", engine.infer, ARTIFACT, right, reached.longest, samples, reached.whole, dict(found)
        )
        assert not faults or bounds != found
        if largest <= 1000:
            assert not Values(samples).beyond(bounds)
        most = reached.extents.get("t", 2000)
        generator = np.random.default_rng(1)
        for size in (1, SIZE, 100, most // 2, most):
            for power in (3, 10, 13, 16, 19, 23):
                request = {"x": generator.integers(2**power * 3 // 4, 2**power, (8, size)).astype(dtype)}
                assert wrong(right, engine, bounds, request) is None, (size, power)


def test_bounds_of_another_engine_are_as_wide_as_they_may_be(tmp_path: Path) -> None:
    def infer(inputs: Tensors) -> Tensors:
        """Adds up in fp32, from which whole numbers are told apart up to 2^24."""
        total = inputs["x"].astype(np.float32).cumsum(axis=1, dtype=np.float32)[:, -1:]
        with np.errstate(invalid="ignore"):
            return {"y": total.astype(i64)}

    def right(inputs: Tensors) -> Tensors:
        return {"y": inputs["x"].sum(axis=1, keepdims=True)}

    samples = {"x": np.random.default_rng(0).integers(0, 100, (16, SIZE))}
    for size, least, most in ((SIZE, 2**15, 2**22), (512, 2**13, 2**15), (4096, 2**11, 2**13)):
        request = {"x": np.resize(samples["x"], (8, size))}
        bounds, faults = narrowed("openvino-cpu", infer, ARTIFACT, right, request, samples, ("x",), {})
        assert faults and "at extents that samples do not have" in faults[0]
        assert not Values({"x": np.array([[least - 1]])}).beyond(bounds)
        assert Values({"x": np.array([[most]])}).beyond(bounds)


def test_numbers_as_samples_may_be_have_their_type_and_range() -> None:
    samples = {"a": np.array([[-7, 3]], np.int8), "b": np.array([[4, 4]], np.uint64), "c": np.ones((1, 2), np.float32)}
    made = list(
        as_samples_may_be({name: np.repeat(array, 6, axis=1) for name, array in samples.items()}, samples, "ab")
    )
    assert made
    for _, request in made:
        for name, array in request.items():
            assert array.dtype == samples[name].dtype
            assert array.shape == (1, 12)
            assert array.min() >= samples[name].min() and array.max() <= samples[name].max()
    assert not list(as_samples_may_be(samples, samples, ()))
