"""Extents that no sample has: an engine that answers otherwise there is refused, or requests are limited."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from enginehouse.contract.bundle import Bundle

from .graphs import f32, model, node, save, weights

SAMPLE = {"resized": 8, "pooled": 9, "plain": 8}
#: OpenVINO resizes without antialiasing, and counts the padding of windows that reach beyond the end otherwise.
WRONG = {"resized", "pooled"}


def net(kind: str) -> onnx.ModelProto:
    middle: Mapping[str, onnx.NodeProto] = {
        "resized": node("Resize", ["c", "", "", "sizes"], ["m"], mode="linear", antialias=1, axes=[2, 3]),
        "pooled": node(
            "AveragePool", ["c"], ["m"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1,
            count_include_pad=1,
        ),
        "plain": node("Relu", ["c"], ["m"]),
    }  # fmt: skip
    nodes = [
        node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        middle[kind],
        node("GlobalMaxPool", ["m"], ["g"]),
        node("Flatten", ["g"], ["y"]),
    ]
    parts: dict[str, np.ndarray] = {"w": weights(4, 3, 3, 3)}
    if kind == "resized":
        parts["sizes"] = np.array([8, 8])
    return model(nodes, {"x": (f32, ["n", 3, "height", "width"])}, {"y": (f32, ["n", 4])}, parts)


@pytest.mark.parametrize(
    ("kind", "limited"), [("resized", False), ("resized", True), ("pooled", False), ("pooled", True), ("plain", False)]
)
def test_an_engine_that_is_wrong_at_other_extents_is_refused_unless_requests_are_limited(
    tmp_path: Path, build_onnx: Callable[..., Bundle], kind: str, limited: bool
) -> None:
    size = SAMPLE[kind]
    np.savez(tmp_path / "x.npz", x=weights(6, 3, size, size))
    options: dict[str, Any] = {"formats": ("onnx", "openvino"), "samples": tmp_path / "x.npz"}
    if limited:
        options["axes"] = dict.fromkeys(("height", "width"), f"{size}:{size}:{size}")
    artifacts = {
        each.name: each for each in build_onnx(save(tmp_path / "m.onnx", net(kind)), **options).manifest.artifacts
    }
    assert artifacts["onnx-fp32"].status == "ready"
    found = artifacts["openvino-fp32"]
    assert found.status == ("failed" if kind in WRONG and not limited else "ready"), found.reason
    if found.status == "failed":
        assert "otherwise than the reference at height = " in (found.reason or "")
        assert "--axis height=MIN:OPT:MAX limits requests to what is right" in (found.reason or "")
