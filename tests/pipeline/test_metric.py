"""The task metric: it gates, belongs to the keys of what it judges, and what cannot judge is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from enginehouse.contract.bundle import Bundle
from enginehouse.contract.errors import BuildError, ConfigError
from enginehouse.engines import load_engine
from enginehouse_build.inputs.recipe import Recipe
from enginehouse_build.pipeline import build

from .conftest import rerun, write_onnx

METRICS = """
def lenient(outputs, labels):
    return 1.0


def strict(outputs, labels):
    return float(abs(outputs["y"] - labels).max() < 1e-5)


def broken(outputs, labels):
    return outputs["missing"]


def never(outputs, labels):
    return float("nan")
"""


@pytest.mark.slow
def test_another_metric_judges_again(recipe: Path) -> None:
    metrics = recipe.parent / "metrics.py"
    metrics.write_text(METRICS)
    bundle, _, _ = rerun(recipe)
    with np.load(recipe.parent / "real.npz") as real:
        engine = load_engine("onnxruntime-cpu", bundle, bundle.manifest.artifact("onnx-fp32"), threads=1)
        np.save(recipe.parent / "labels.npy", engine.infer({"x": real["x"]})["y"])
        engine.close()
    given = {"labels": recipe.parent / "labels.npy", "precisions": ("fp32", "int8"), "limits": {"int8": 1.0}}
    lenient, _, _ = rerun(recipe, metric=f"{metrics}:lenient", **given)
    assert lenient.manifest.artifact("onnx-int8").status == "ready"
    strict, outcomes, _ = rerun(recipe, metric=f"{metrics}:strict", **given)
    judged = strict.manifest.artifact("onnx-int8")
    assert judged.status == "failed"
    assert "strict 0.0000 instead of 1.0000 on 40 rows" in (judged.reason or "")
    assert (outcomes["convert onnx-int8"], outcomes["verify onnx-fp32"]) == ("cached", "done")
    # The same name with another body is another metric.
    metrics.write_text(METRICS.replace("return 1.0", "return 0.5"))
    edited, _, _ = rerun(recipe, metric=f"{metrics}:lenient", **given)
    parity = edited.manifest.artifact("onnx-fp32").parity
    assert parity is not None
    assert parity.metric is not None
    assert parity.metric.value == 0.5


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("broken", r"metric '.*:broken' raised KeyError: 'missing' \(.*metrics.py:11\)"),
        ("never", r"metric '.*:never' is nan; it must be a finite number"),
        ("absent", r"has no function 'absent'; it has broken, lenient, never, strict"),
    ],
)
def test_a_metric_that_cannot_judge_is_named(recipe: Path, metric: str, message: str) -> None:
    metrics, labels = recipe.parent / "metrics.py", recipe.parent / "labels.npy"
    metrics.write_text(METRICS)
    np.save(labels, np.zeros(40))
    with pytest.raises(BuildError, match=message):
        rerun(recipe, labels=labels, metric=f"{metrics}:{metric}")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((40, 1), np.int64), r"int64 of shape \[40, 1\]; accuracy needs whole numbers \[40\]"),
        (np.zeros(40), r"float64 of shape \[40\]; accuracy needs whole numbers"),
        (np.zeros(39, np.int64), r"shape \[39\] for 40 samples; give one for each"),
    ],
)
def test_labels_that_do_not_fit_are_refused(recipe: Path, labels: np.ndarray, message: str) -> None:
    np.save(recipe.parent / "labels.npy", labels)
    with pytest.raises(BuildError, match=message):
        rerun(recipe, labels=recipe.parent / "labels.npy")


def test_labels_of_no_samples_and_samples_without_arrays_are_refused(linear: Path, recipe: Path) -> None:
    np.save(recipe.parent / "labels.npy", np.zeros(64, np.int64))
    values = {"source": str(linear), "name": "m", "store": str(recipe.parent), "threads": 1}
    with pytest.raises(ConfigError, match="need the samples that they are for; give --samples FILE.npz"):
        build(Recipe.of(**values, labels=recipe.parent / "labels.npy"))
    np.savez(recipe.parent / "none.npz")
    with pytest.raises(BuildError, match="input 'x' is missing"):
        build(Recipe.of(**values, samples=recipe.parent / "none.npz"))
    with pytest.raises(BuildError, match="one array without a name; save it with np.savez"):
        np.save(recipe.parent / "plain.npy", np.zeros((2, 3), np.float32))
        build(Recipe.of(**values, samples=recipe.parent / "plain.npy"))


def test_the_task_metric_gates_where_labels_are_given(tmp_path: Path, build_onnx: Callable[..., Bundle]) -> None:
    generator = np.random.default_rng(0)
    w = generator.standard_normal((16, 10)).astype(np.float32)
    path = write_onnx(
        tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["b", 16]}, {"y": ["b", 10]}, w=w
    )
    x = generator.standard_normal((200, 16)).astype(np.float32)
    labels = (x @ w).argmax(1)
    labels[:20] = (labels[:20] + 1) % 10
    np.savez(tmp_path / "x.npz", x=x)
    np.save(tmp_path / "labels.npy", labels)
    given = {"samples": tmp_path / "x.npz", "labels": tmp_path / "labels.npy", "precisions": ("fp32", "int8")}
    manifest = build_onnx(path, max_drop=1.0, **given).manifest
    exact, rough = manifest.artifact("onnx-fp32").parity, manifest.artifact("onnx-int8").parity
    assert exact is not None
    assert exact.metric is not None
    assert (exact.metric.name, exact.metric.reference, exact.metric.value) == ("accuracy", 0.9, 0.9)
    assert rough is not None
    assert rough.metric is not None
    assert 0 < rough.metric.drop < 0.1
    strict = build_onnx(path, max_drop=rough.metric.drop / 2, **given).manifest.artifact("onnx-int8")
    assert strict.status == "failed"
    assert f"instead of 0.9000 on 200 rows, a drop of {rough.metric.drop:.4f}" in (strict.reason or "")
