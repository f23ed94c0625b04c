"""Samples in which a model has nothing to say prove nothing: it is remarked, and fp32 is chosen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from enginehouse.contract.bundle import MANIFEST, Bundle
from enginehouse.contract.choice import choose_artifact
from enginehouse.contract.manifest import Manifest

from .graphs import f32, i64, model, node, save, weights

#: What a score has to be above; no answer of `tanh` is above 2.
SILENT, LOUD = 2.0, -2.0


def detector(folder: Path, threshold: float, padded: bool) -> Path:
    """Scores of which those above the threshold are the answer: as a list of their own, or the others as 0."""
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("Tanh", ["h"], ["s"]),
        node("Greater", ["s", "threshold"], ["is_found"]),
    ]
    if padded:
        nodes.append(node("Where", ["is_found", "s", "zero"], ["found"]))
    else:
        nodes += [node("Cast", ["is_found"], ["kept"], to=1), node("Mul", ["s", "kept"], ["found"])]
    parts = {
        "w": weights(6, 8),
        "threshold": np.array(threshold, f32),
        "zero": np.zeros(1, f32),
        "one": np.ones(1, i64),
    }
    parts = {name: value for name, value in parts.items() if any(name in each.input for each in nodes)}
    proto = model(nodes, {"x": (f32, ["n", 6])}, {"found": (f32, ["n", 8])}, parts)
    return save(folder / "detector.onnx", proto)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("threshold", [SILENT, LOUD])
def test_a_detector_that_detects_nothing_is_remarked_and_served_in_fp32(
    tmp_path: Path, build_onnx: Callable[..., Bundle], threshold: float, padded: bool
) -> None:
    np.savez(tmp_path / "x.npz", x=weights(16, 6))
    options = {"precisions": ("fp32", "fp16"), "samples": tmp_path / "x.npz"}
    bundle = build_onnx(detector(tmp_path, threshold, padded), **options)
    text = (bundle.path / MANIFEST).read_text()
    for artifact in bundle.manifest.artifacts:
        silent = threshold == SILENT
        assert artifact.unproven == (("found",) if silent else ())
        assert any("nothing was compared in 'found'" in remark for remark in artifact.remarks) == silent
    # The release before refuses the field: only what needs it has it.
    assert ("unproven" in text) == (threshold == SILENT)
    # As fast and as exact as they come: were it not for the comparison, these would be taken.
    half = bundle.manifest.artifact("onnx-fp16").model_copy(update={"effective_precision": "fp16"})
    quick = tuple(
        table.model_copy(
            update={
                "verdict": "VALID",
                "points": tuple(
                    point.model_copy(update={"median_ms": 1.0 if table.artifact == half.name else 9.0, "spread": 0.0})
                    for point in table.points
                ),
            }
        )
        for table in bundle.manifest.latency
    )
    described = bundle.manifest.model_copy(
        update={"artifacts": (bundle.manifest.artifact("onnx-fp32"), half), "latency": quick}
    )
    described = Manifest.parse(described.model_dump_json(), MANIFEST)
    choice = choose_artifact(described, ("onnxruntime-cpu",), "full")
    assert choice is not None
    assert choice[1].name == ("onnx-fp32" if threshold == SILENT else "onnx-fp16")
