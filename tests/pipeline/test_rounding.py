"""Whole numbers that rounding decides may differ in an artifact, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from benchmarks.mutations.judged import Subject
from benchmarks.mutations.models import MODELS, Model
from benchmarks.mutations.mutants import Graph

from enginehouse.contract.manifest import Format

from .graphs import f32, i64, model, node

WIDTH = 4000


def floors() -> onnx.ModelProto:
    nodes = [node("Mul", ["x", "four"], ["m"]), node("Floor", ["m"], ["f"]), node("Cast", ["f"], ["y"], to=7)]
    parts = {"four": np.array([4], f32)}
    return model(nodes, {"x": (f32, ["n", WIDTH])}, {"y": (i64, ["n", WIDTH])}, parts)


def values() -> dict[str, np.ndarray]:
    """Two in each row are whole numbers after all: less than nothing decides which."""
    rows = np.random.default_rng(0).uniform(0.1, 0.9, (16, WIDTH)).astype(f32)
    rows[:, 100:102] = 0.5
    return {"x": rows}


def rounded(graph: Graph) -> None:
    graph.change("four", np.array([4 * (1 - 1e-7)]))


def wrong(columns: int) -> Callable[[Graph], None]:
    """So many numbers in each row are one too large."""
    off = np.zeros((1, WIDTH), f32)
    off[0, 7 : 7 + columns] = 1
    return lambda graph: graph.behind("m", ("Add", ["m", off], {}))


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_what_rounding_decides_is_no_fault(tmp_path: Path, format: Format) -> None:
    subject = Subject.of(Model(floors, values), tmp_path / "ties")
    changed, _ = subject.effect(rounded)
    assert changed == pytest.approx(2 / WIDTH)
    found = subject.judged(format, "fp32", rounded)
    assert found.status == "ready", found.reason


@pytest.mark.parametrize(("ties", "columns"), [(0, 1), (2, 12)])
def test_one_number_more_is(tmp_path: Path, ties: int, columns: int) -> None:
    rows = values() if ties else {"x": values()["x"] * f32(0.99)}
    subject = Subject.of(Model(floors, lambda: rows), tmp_path / "ties")
    assert subject.effect(rounded)[0] == pytest.approx(ties / WIDTH)
    found = subject.judged("onnx", "fp32", wrong(columns))
    assert found.status == "failed"
    assert ties or "rounding decides" in (found.reason or "")


@pytest.mark.parametrize("format", ["onnx", "openvino"])
@pytest.mark.parametrize("name", ["classifier", "segmenter", "detector", "encoder", "tabular", "pooler"])
def test_weights_rounded_otherwise_pass(tmp_path: Path, name: str, format: Format) -> None:
    generator = np.random.default_rng(0)

    def shaken(graph: Graph) -> None:
        for weight in [each for each in graph.constants() if each not in ("scales", "lowest")]:
            array = graph.constant(weight)
            if array.dtype == f32:
                graph.change(weight, array * (1 + 2e-7 * generator.uniform(-1, 1, array.shape)))

    found = Subject.of(MODELS[name], tmp_path / name).judged(format, "fp32", shaken)
    assert found.status == "ready", found.reason
