"""An engine that is here and refuses an artifact fails it; only what is not here leaves it to be verified elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from enginehouse.contract.bundle import Bundle
from enginehouse.contract.errors import ConversionFailed
from enginehouse_build.convert.quantize import quantize_for_onnxruntime, quantize_for_tensorrt
from enginehouse_build.judge.absence import missing

from .graphs import f32, model, node, save, weights
from .small_nets import Convert

Net = Callable[[Any], onnx.ModelProto]


def dense(dtype: Any) -> onnx.ModelProto:
    nodes = [
        node("MatMul", ["x", "w1"], ["h"]),
        node("Relu", ["h"], ["a"]),
        node("MatMul", ["a", "w2"], ["y"]),
    ]
    parts = {"w1": weights(6, 8, dtype=dtype), "w2": weights(8, 4, dtype=dtype)}
    return model(nodes, {"x": (dtype, ["n", 6])}, {"y": (dtype, ["n", 4])}, parts)


def affine(dtype: Any) -> onnx.ModelProto:
    nodes = [node("Gemm", ["x", "w", "b"], ["y"])]
    parts = {"w": weights(6, 4, dtype=dtype), "b": weights(4, dtype=dtype)}
    return model(nodes, {"x": (dtype, ["n", 6])}, {"y": (dtype, ["n", 4])}, parts)


@pytest.mark.parametrize("quantize", [quantize_for_onnxruntime, quantize_for_tensorrt])
@pytest.mark.parametrize("net", [dense, affine])
def test_what_was_not_quantized_is_not_called_int8(tmp_path: Path, quantize: Convert, net: Net) -> None:
    for dtype, is_quantized in ((np.float64, False), (f32, True)):
        path = save(tmp_path / f"{np.dtype(dtype).name}.onnx", net(dtype))
        data = [{"x": weights(4, 6, dtype=dtype, seed=seed)} for seed in range(4)]
        if is_quantized:
            assert quantize(path, tmp_path / "int8.onnx", data) == ""
        else:
            with pytest.raises(ConversionFailed, match="nothing was quantized"):
                quantize(path, tmp_path / "int8.onnx", data)


@pytest.mark.parametrize("net", [dense, affine])
def test_an_artifact_that_its_engine_refuses_failed_and_says_why(
    tmp_path: Path, build_onnx: Callable[..., Bundle], net: Net
) -> None:
    assert missing("openvino-cpu") == ""
    path = save(tmp_path / "double.onnx", net(np.float64))
    np.savez(tmp_path / "x.npz", x=weights(16, 6, dtype=np.float64))
    bundle = build_onnx(path, formats=("onnx", "openvino"), precisions=("fp32", "int8"), samples=tmp_path / "x.npz")
    assert bundle.manifest.artifact("onnx-fp32").status == "ready"
    for name in ("onnx-int8", "openvino-int8"):
        artifact = bundle.manifest.artifact(name)
        assert artifact.status == "failed", (name, artifact.status)
        assert artifact.reason
        assert str(bundle.path.parent) not in artifact.reason
        assert ".building" not in artifact.reason
