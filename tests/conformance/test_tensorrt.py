"""What can be said of the TensorRT engine without a GPU: its refusals are right."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from enginehouse.contract.errors import EngineUnavailable
from enginehouse.contract.manifest import Artifact
from enginehouse.contract.tensors import Signature
from enginehouse.engines import EngineOptions
from enginehouse.engines.hardware import probe_gpus
from enginehouse.engines.tensorrt import device, fitted, library, runtime

INSTALLED = [name for name in library.FLAVOURS if importlib.util.find_spec(name.replace("-", "_"))]
needs_flavour = pytest.mark.skipif(not INSTALLED, reason="neither tensorrt nor tensorrt_rtx is installed")


@pytest.mark.skipif(bool(probe_gpus().devices), reason="this machine has a GPU, so CUDA does not refuse")
def test_a_failing_cuda_call_is_an_error_with_the_runtimes_words() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    with pytest.raises(device.DeviceError, match=r"cudaMalloc failed with cudaError\w+ \(.+\)"):
        device.cuda("cudaMalloc", 16)


@needs_flavour
@pytest.mark.parametrize("flavour", INSTALLED)
def test_a_file_that_is_no_engine_is_refused_with_tensorrts_words(flavour: str, tmp_path: Path) -> None:
    file = tmp_path / "model.engine"
    file.write_bytes(b"this is no engine" * 64)
    with pytest.raises(EngineUnavailable) as refused:
        runtime._deserialize(library.library(flavour), file)
    assert str(file) in str(refused.value)
    assert "gave no reason" not in str(refused.value)


@pytest.mark.skipif(bool(probe_gpus().devices), reason="this machine has a GPU")
def test_without_a_gpu_nothing_is_built_and_the_driver_says_why(tmp_path: Path) -> None:
    artifact = Artifact(name="t", format="tensorrt", precision="fp32", status="unverified")
    told: list[str] = []
    with pytest.raises(EngineUnavailable) as refused:
        fitted(EngineOptions([tmp_path / "model.onnx"], artifact, Signature((), ()), 1, 1), told.append)
    assert probe_gpus().reason in str(refused.value)
    assert told == []


def test_an_unknown_flavour_is_refused_with_the_known_ones() -> None:
    with pytest.raises(EngineUnavailable, match="'trt9' is not known; the flavours are tensorrt, tensorrt-rtx"):
        library.library("trt9")
