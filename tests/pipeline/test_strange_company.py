"""A stranger's NaN, infinity or huge number beside a row: the artifact is bound to what leaves its answer alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from enginehouse.contract import probes, tensor_file
from enginehouse.contract.bounds import Values
from enginehouse.contract.errors import InferenceFailed
from enginehouse.contract.manifest import Artifact
from enginehouse.contract.tensors import Tensors
from enginehouse_build.reference.onnx import plain_session, signature_of
from enginehouse_build.reference.probes import make
from enginehouse_build.reference.proof import prove_dynamic
from enginehouse_build.reference.strangers import Door

from .graphs import f32, model, node, save, weights

Nodes = list[onnx.NodeProto]
ARTIFACT = Artifact(name="onnx-fp32", format="onnx", precision="fp32", status="ready")
HIDDEN = 4


def stabilised(axes: str) -> Nodes:
    """A softmax that subtracts the largest score."""
    return [
        node("ReduceMax", ["h", axes], ["m"], keepdims=1),
        node("Sub", ["h", "m"], ["d"]),
        node("Exp", ["d"], ["e"]),
        node("ReduceSum", ["e", "first"], ["s"], keepdims=1),
        node("Div", ["e", "s"], ["y"]),
    ]


def nothing_of(axes: str) -> Nodes:
    """A sum times nothing, as of a switched-off penalty."""
    return [
        node("ReduceSum", ["h", axes], ["sum"], keepdims=1),
        node("Mul", ["sum", "nought"], ["none"]),
        node("Add", ["h", "none"], ["y"]),
    ]


def repaired(axes: str) -> Nodes:
    """Something else is answered where any value is missing."""
    return [
        node("IsNaN", ["h"], ["missing"]),
        node("Cast", ["missing"], ["share"], to=TensorProto.FLOAT),
        node("ReduceMax", ["share", axes], ["any"], keepdims=1),
        node("Add", ["h", "any"], ["y"]),
    ]


def alarmed(axes: str) -> Nodes:
    """The same where any value is infinite."""
    return [
        node("Max", ["x", "x"], ["same"]),
        node("IsInf", ["same"], ["infinite"]),
        node("Cast", ["infinite"], ["share"], to=TensorProto.FLOAT),
        node("ReduceMax", ["share", axes], ["any"], keepdims=1),
        node("Add", ["h", "any"], ["y"]),
    ]


def limited(axes: str) -> Nodes:
    """The same where any value is beyond a million."""
    return [
        node("Greater", ["x", "million"], ["beyond"]),
        node("Cast", ["beyond"], ["share"], to=TensorProto.FLOAT),
        node("ReduceMax", ["share", axes], ["any"], keepdims=1),
        node("Add", ["h", "any"], ["y"]),
    ]


KINDS: tuple[Callable[[str], Nodes], ...] = (stabilised, nothing_of, repaired, alarmed, limited)
ENDS = ("scores", "label")


def scored(kind: Callable[[str], Nodes], axes: str, end: str) -> onnx.ModelProto:
    nodes = [node("MatMul", ["x", "w"], ["h"]), *kind(axes)]
    constants: dict[str, np.ndarray] = {
        "w": weights(6, HIDDEN) / 16, "first": np.array([1]), "whole": np.array([0, 1]), "nought": np.array(0, f32),
        "million": np.array(1e6, f32),
    }  # fmt: skip
    dtype: Any = f32
    shape: list[int | str | None] = ["n", HIDDEN]
    if end == "label":
        nodes[-1].output[0] = "scores"
        constants["ten"] = np.array(10, f32)
        nodes += [
            node("Mul", ["scores", "ten"], ["more"]),
            node("Cast", ["more"], ["y"], to=TensorProto.INT64),
        ]
        dtype = np.int64
    return model(nodes, {"x": (f32, ["n", 6])}, {"y": (dtype, shape)}, constants)


def rows(count: int, seed: int) -> Mapping[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).uniform(-0.5, 0.5, (count, 6)).astype(f32)}


def engine(run: Callable[[Tensors], Tensors]) -> Callable[[Tensors], Tensors]:
    def infer(inputs: Tensors) -> Tensors:
        try:
            return run(inputs)
        except Exception as error:
            raise InferenceFailed(str(error)) from error

    return infer


def bounds_of(proto: onnx.ModelProto, folder: Path, max_rows: int = 8) -> tuple[dict[str, Any], tuple[str, ...]]:
    run = plain_session(save(folder / "made.onnx", proto), 1)
    signature = signature_of(proto, True)
    # For values like those of the samples, and far from them, rows are apart.
    prove_dynamic(run, run, rows(16, 0), (), None, Door.of(proto, signature.inputs))
    path = folder / "probes.npz"
    probes.write(path, make(run, proto, rows(16, 0), signature, max_rows))
    return probes.found("onnxruntime-cpu", engine(run), ARTIFACT, probes.read(path))


STRANGE = {"NaN": np.nan, "infinity": np.inf, "-infinity": -np.inf}
for _power in (8, 12, 20, 40, 90, 126):
    STRANGE |= {f"+2^{_power}": 2.0**_power, f"-2^{_power}": -(2.0**_power)}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_stranger_may_send_leaves_the_others_alone(
    kind: Callable[[str], Nodes], end: str, tmp_path: Path
) -> None:
    proto = scored(kind, "whole", end)
    bounds, faults = bounds_of(proto, tmp_path)
    assert set(bounds) == {"x"}
    assert any("of another row of the batch" in fault for fault in faults)
    run, own = plain_session(tmp_path / "made.onnx", 1), rows(1, 5)
    alone, kept = run(own)["y"], []
    for name, value in STRANGE.items():
        for places in (slice(0, 1), slice(None)):
            stranger = rows(1, 6)["x"].copy()
            stranger[0, places] = value
            if Values({"x": stranger}).beyond(bounds):
                continue
            kept.append(name)
            got = run({"x": np.concatenate([stranger, own["x"]])})["y"][1:]
            np.testing.assert_allclose(got, alone, rtol=1e-4, atol=1e-6, err_msg=name)
    # As many as are harmless.
    assert kind is stabilised or "+2^12" in kept


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_apart_have_no_bounds(kind: Callable[[str], Nodes], end: str, tmp_path: Path) -> None:
    assert bounds_of(scored(kind, "first", end), tmp_path) == ({}, ())


def test_a_model_that_answers_one_row_at_a_time_has_no_company(tmp_path: Path) -> None:
    proto = scored(nothing_of, "whole", "scores")
    run = plain_session(save(tmp_path / "made.onnx", proto), 1)
    found = make(run, proto, rows(16, 0), signature_of(proto, True), max_rows=1)
    assert found
    assert not any(probe.beside for probe in found)


def test_probes_that_were_written_before_there_was_company_are_read(tmp_path: Path) -> None:
    proto = scored(nothing_of, "whole", "scores")
    run = plain_session(save(tmp_path / "made.onnx", proto), 1)
    made = make(run, proto, rows(16, 0), signature_of(proto, True))
    path = tmp_path / "probes.npz"
    probes.write(path, [replace(probe, beside=0) for probe in made])
    assert all("beside" not in about for about in tensor_file.read(path)[::3])
    assert [probe.beside for probe in probes.read(path)] == [0] * len(made)
    probes.write(path, made)
    assert [probe.beside for probe in probes.read(path)] == [probe.beside for probe in made]
    assert {0, 1} == {probe.beside for probe in made}
