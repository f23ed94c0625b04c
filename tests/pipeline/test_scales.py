"""Values of another scale than the samples': much fainter ones, whole rows or single ones, and louder ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from enginehouse.contract import probes
from enginehouse.contract.bounds import Region, Values, described
from enginehouse.contract.manifest import EngineKind
from enginehouse.contract.parity import LIMITS, first_difference
from enginehouse.contract.tensors import Tensors
from enginehouse.engines import EngineOptions
from enginehouse.engines.openvino import OpenVinoCpu
from enginehouse_build.convert import openvino as for_openvino
from enginehouse_build.inputs.scales import FAINT, faint, loud
from enginehouse_build.judge.rounding import by_rounding
from enginehouse_build.reference.conditioning import Rounding
from enginehouse_build.reference.onnx import signature_of

from .graphs import f32, model, node, weights
from .test_probes import ARTIFACT, Run, made

SHAPES: dict[int, tuple[int, ...]] = {2: (8,), 3: (5, 8), 4: (4, 6, 6)}


def of(dims: int, *nodes: onnx.NodeProto, **parts: np.ndarray) -> onnx.ModelProto:
    shape: list[int | str] = ["n", *SHAPES[dims]]
    return model(list(nodes), {"x": (f32, shape)}, {"y": (f32, list("nabc")[:dims])}, parts)


@contextmanager
def engine_of(folder: Path, proto: onnx.ModelProto) -> Iterator[Run]:
    """OpenVINO, of the model that `made` has written to `folder`."""
    (folder / "ir").mkdir()
    for_openvino.convert(folder / "m.onnx", folder / "ir", "fp32", ())
    files, signature = sorted((folder / "ir").iterdir()), signature_of(proto, True)
    engine = OpenVinoCpu(EngineOptions(files=files, artifact=ARTIFACT, signature=signature, max_rows=64, threads=1))
    try:
        yield engine.infer
    finally:
        engine.close()


def samples(dims: int, rows: int = 40) -> Tensors:
    return {"x": np.random.default_rng(1).standard_normal((rows, *SHAPES[dims])).astype(f32)}


#: What OpenVINO divides by has a constant of its own, which 1e-3 is not large beside.
NORMALISED = {
    "rows": (2, of(2, node("LpNormalization", ["x"], ["y"], axis=1, p=2))),
    "steps": (3, of(3, node("LpNormalization", ["x"], ["y"], axis=2, p=2))),
    "channels": (4, of(4, node("LpNormalization", ["x"], ["y"], axis=1, p=2))),
    "behind a product": (
        2,
        of(2, node("MatMul", ["x", "w"], ["h"]), node("LpNormalization", ["h"], ["y"], axis=1), w=weights(8, 4)),
    ),
}


@pytest.mark.parametrize("name", NORMALISED)
def test_what_openvino_divides_by_its_length_is_asked_of_it_where_that_is_not_small(tmp_path: Path, name: str) -> None:
    dims, proto = NORMALISED[name]
    right, probed = made(tmp_path, proto, samples(dims))
    with engine_of(tmp_path, proto) as infer:
        bounds, faults = probes.found("openvino-cpu", infer, ARTIFACT, probed)
        let_in = 0
        for exponent in range(31):
            for rows in (slice(None), slice(1)):
                x = samples(dims, 3)["x"] * 0.5
                x[rows] *= f32(2.0**-exponent)
                if Values({"x": x}).beyond(bounds):
                    continue
                let_in += 1
                fault = first_difference(infer({"x": x}), right({"x": x}), 5e-3, 5e-3)
                assert fault is None, (exponent, described(bounds), fault)
    assert let_in
    assert not Values({"x": samples(dims)["x"]}).beyond(bounds), "what the samples have is let in"
    assert "nowhere below 2^-" in described(bounds), faults


def test_a_window_of_large_values_below_the_huge_ones_is_found(tmp_path: Path) -> None:
    proto = of(2, node("Softmax", ["x"], ["p"], axis=-1), node("Log", ["p"], ["y"]))
    right, probed = made(tmp_path, proto, samples(2))
    rounding = Rounding(tmp_path / "m.onnx", 1)
    with engine_of(tmp_path, proto) as infer:
        explains = by_rounding(rounding, right, LIMITS["fp32"])
        for excused in (None, explains):
            bounds, _ = probes.found("openvino-cpu", infer, ARTIFACT, probed, excused)
            assert isinstance(bounds["x"], int), described(bounds)
            assert 4 <= bounds["x"] <= 32


ORDINARY = {
    "perceptron": (
        2,
        of(
            2,
            node("MatMul", ["x", "w"], ["h"]),
            node("Relu", ["h"], ["r"]),
            node("MatMul", ["r", "v"], ["y"]),
            w=weights(8, 16),
            v=weights(16, 3),
        ),
    ),
    **{op: (2, of(2, node(op, ["x"], ["y"]))) for op in ("Elu", "Softplus", "Erf", "Tanh", "Sigmoid", "Softmax")},
    "log1p": (
        2,
        of(
            2,
            node("Abs", ["x"], ["a"]),
            node("Add", ["a", "one"], ["b"]),
            node("Log", ["b"], ["y"]),
            one=np.ones(1, f32),
        ),
    ),
    "layer": (
        3,
        of(3, node("LayerNormalization", ["x", "s", "b"], ["y"], epsilon=1e-5), s=np.ones(8, f32), b=weights(8)),
    ),
    "instance": (
        4,
        of(4, node("InstanceNormalization", ["x", "s", "b"], ["y"]), s=np.ones(4, f32), b=weights(4)),
    ),
    "convolution": (
        4,
        of(
            4,
            node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"]),
            node("Relu", ["n"], ["r"]),
            node("GlobalAveragePool", ["r"], ["y"]),
            w=weights(8, 4, 3, 3),
            s=np.ones(8, f32),
            b=weights(8),
            m=weights(8),
            v=np.ones(8, f32),
        ),
    ),
    "attention": (
        3,
        of(
            3,
            node("MatMul", ["x", "q"], ["a"]),
            node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
            node("MatMul", ["a", "t"], ["s"]),
            node("Softmax", ["s"], ["p"], axis=-1),
            node("MatMul", ["p", "x"], ["y"]),
            q=weights(8, 8),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ORDINARY)
def test_mere_rounding_binds_no_ordinary_model(tmp_path: Path, name: str) -> None:
    dims, proto = ORDINARY[name]
    right, probed = made(tmp_path, proto, samples(dims))
    with engine_of(tmp_path, proto) as infer:
        explains = by_rounding(Rounding(tmp_path / "m.onnx", 1), right, LIMITS["fp32"])
        kinds: dict[EngineKind, Run] = {"openvino-cpu": infer, "onnxruntime-cpu": right}
        for kind, asked in kinds.items():
            bounds, faults = probes.found(kind, asked, ARTIFACT, probed, explains)
            regions = [bound for bound in bounds.values() if isinstance(bound, Region) and bound.not_faint]
            assert not regions, (described(bounds), faults)
            for size in (1e-12, 1e-6, 1e-3, 0.1, 10, 100):
                x = samples(dims, 3)["x"] * f32(size)
                assert not Values({"x": x}).beyond(bounds), (described(bounds), faults)


@pytest.mark.parametrize("dims", SHAPES)
@pytest.mark.parametrize("size", [1e-6, 1.0, 255.0])
def test_requests_are_of_the_scales_that_they_say_and_bounds_keep_out_no_sample(dims: int, size: float) -> None:
    given: Tensors = {"x": samples(dims)["x"] * f32(size), "y": np.arange(40)}
    row: Any = tuple(range(1, dims))
    made_up = [*faint(given, {"x": [row, ()]}, True), *loud(given, ["x"], True)]
    assert len(made_up) >= len(FAINT)
    for names, within, said, request in made_up:
        assert names == ("x",)
        assert not Values(given).beyond({"x": within}), said
        assert Values(request).beyond({"x": within}), said
        assert len(request["y"]) == len(request["x"])
