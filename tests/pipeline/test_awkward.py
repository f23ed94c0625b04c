"""Awkward ONNX files, built whole: every artifact that is published answers as ONNX Runtime does on the original."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginehouse.contract.errors import ExportFailed
from enginehouse.contract.manifest import ENGINE_KINDS, FORMAT_OF, EngineKind
from enginehouse.contract.parity import LIMITS, compare
from enginehouse.contract.store import Store
from enginehouse.engines import load_engine
from enginehouse_build.inputs.recipe import Recipe
from enginehouse_build.pipeline import build

from .awkward import SERVED
from .refused import REFUSED
from .test_adopt import Runtime

CPU_KINDS = tuple(kind for kind in ENGINE_KINDS if kind in ("onnxruntime-cpu", "openvino-cpu"))
#: What must be kept out: engines that answer wrongly, and a precision that changes nothing.
KEPT_OUT = {
    "large_integers": {"openvino-fp32", "openvino-fp16", "onnx-fp16"},
    "halves": {"onnx-fp16"},
}


def kind_of(format: str) -> EngineKind:
    return next(kind for kind in CPU_KINDS if FORMAT_OF[kind] == format)


@pytest.mark.parametrize("kind", SERVED)
def test_what_is_published_answers_as_the_original_on_fresh_inputs(kind: str, tmp_path: Path) -> None:
    case = SERVED[kind](tmp_path)
    recipe = {"formats": ("onnx", "openvino"), "precisions": ("fp32", "fp16"), "threads": 1, "max_batch": 8}
    if case.recipe.get("batched") is False:
        recipe.pop("max_batch")
    store = str(tmp_path / "store")
    bundle = build(Recipe.of(source=str(case.path), name="awkward", store=store, **(recipe | dict(case.recipe))))
    artifacts = {artifact.name: artifact for artifact in bundle.manifest.artifacts}
    assert artifacts["onnx-fp32"].status == "ready"
    out = {name for name, artifact in artifacts.items() if artifact.status != "ready"}
    assert out == KEPT_OUT.get(kind, set()), {name: artifacts[name].reason for name in out}
    assert all(artifacts[name].reason for name in out)
    original = Runtime(case.path)
    for name in artifacts.keys() - out:
        engine = load_engine(kind_of(artifacts[name].format), bundle, artifacts[name], threads=1)
        for seed, rows in enumerate((1, 3, 8) if case.batched else (1,)):
            inputs = case.fresh(rows, 100 + seed)
            want = original.row_by_row(inputs) if case.batched else original(inputs)
            figures = compare(engine.infer(inputs), want)
            assert figures.relative_l2 <= LIMITS[artifacts[name].precision].relative_l2, (name, rows, figures)
            assert figures.differing == 0, (name, rows, figures)
        engine.close()


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_served_is_refused_and_nothing_is_published(kind: str, tmp_path: Path) -> None:
    case = REFUSED[kind](tmp_path)
    store = tmp_path / "store"
    with pytest.raises(ExportFailed, match=case.refusal):
        build(Recipe.of(source=str(case.path), name="refused", store=str(store), threads=1, **dict(case.recipe)))
    assert Store(store).models() == []
