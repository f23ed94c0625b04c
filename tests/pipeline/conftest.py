"""Small real models, and one digits bundle that is built once for all tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from enginehouse.contract.bundle import Bundle
from enginehouse_build import pipeline
from enginehouse_build.inputs.recipe import PRECISIONS, Recipe
from enginehouse_build.pipeline import build
from enginehouse_build.steps import isolate

from . import steps
from .forked import Forked


@dataclass
class Recorder:
    """A progress callback that remembers what it was told."""

    events: list[tuple[str, str, str]] = field(default_factory=list)

    def __call__(self, stage: str, outcome: str, detail: str = "") -> None:
        self.events.append((stage, outcome, detail))


@dataclass
class Built:
    bundle: Bundle
    store: Path
    progress: Recorder


@pytest.fixture(scope="session", autouse=True)
def empty_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Steps that earlier runs finished must not stand in for those that are tested."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("ENGINEHOUSE_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these builds are looked at for is not how fast something is, nor how a process begins: most of their time.

    Of these two, test_profile and test_isolate are, and builds in a process of their own start their steps as ever.
    """
    monkeypatch.setattr(pipeline, "measured_beside", steps.measure_once)
    monkeypatch.setattr(isolate, "WorkerProcess", Forked)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Built:
    store = tmp_path_factory.mktemp("store")
    progress = Recorder()
    recipe = Recipe.of(
        source="examples.digits:digits", name="digits", store=str(store), threads=2, precisions=PRECISIONS
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "measured_beside", steps.measure_three_rounds)
        return Built(build(recipe, progress), store, progress)


@pytest.fixture
def build_onnx(tmp_path: Path) -> Callable[..., Bundle]:
    """Build an ONNX file into `tmp_path/store`; keyword arguments are the recipe's."""

    def run(path: Path, **values: Any) -> Bundle:
        defaults = {"name": "tiny", "formats": ("onnx",), "precisions": ("fp32",), "threads": 1, "max_batch": 4}
        if values.get("batched") is False:
            defaults.pop("max_batch")
        return build(Recipe.of(source=str(path), store=str(tmp_path / "store"), **(defaults | values)))

    return run


def write_onnx(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Sequence[int | str]],
    outputs: dict[str, Sequence[int | str]],
    **constants: np.ndarray,
) -> Path:
    """An fp32 ONNX file made of `nodes`; a dimension given as text is free."""

    def values(shapes: dict[str, Sequence[int | str]]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    weights = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "test", values(inputs), values(outputs), weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    """y = relu(x @ w): [batch, 3] -> [batch, 2]."""
    w = np.array([[1.0, -2.0], [0.5, 4.0], [-3.0, 1.5]], dtype=np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    return write_onnx(tmp_path / "linear.onnx", nodes, {"x": ["batch", 3]}, {"y": ["batch", 2]}, w=w)


@pytest.fixture
def recipe(linear: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe file of the linear model with real samples, and a step cache of its own."""
    monkeypatch.setenv("ENGINEHOUSE_CACHE", str(tmp_path / "cache"))
    rows = np.random.default_rng(1).standard_normal((40, 3), dtype=np.float32)
    np.savez(tmp_path / "real.npz", x=rows)
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'source = "{linear}"\nname = "tiny"\nstore = "store"\nsamples = "real.npz"\nthreads = 1\nmax_batch = 4\n'
        'formats = ["onnx", "openvino"]\nprecisions = ["fp32", "fp16"]\n'
    )
    return path


def rerun(recipe: Path, **changes: Any) -> tuple[Bundle, dict[str, str], float]:
    """Build in this process; the bundle, how each stage ended, and the seconds it took."""
    progress = Recorder()
    began = time.monotonic()
    bundle = build(Recipe.from_file(recipe, **changes), progress)
    seconds = time.monotonic() - began
    return bundle, {stage: outcome for stage, outcome, _ in progress.events if outcome != "started"}, seconds
