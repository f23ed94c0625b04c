"""What can be said of the TensorRT engine without a GPU: its names are real, its refusals are right."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

from enginehouse.bundle import Artifact
from enginehouse.engines import EngineOptions, tensorrt
from enginehouse.errors import EngineUnavailable
from enginehouse.hardware import probe_gpus
from enginehouse.tensors import Signature

TREE = ast.parse(inspect.getsource(tensorrt))
INSTALLED = [name for name in tensorrt.FLAVOURS if importlib.util.find_spec(name)]
needs_flavour = pytest.mark.skipif(not INSTALLED, reason="neither tensorrt nor tensorrt_rtx is installed")


def used_names(variable: str) -> set[str]:
    """Dotted names that the engine's source reads from `variable`: `trt` -> {"Runtime", "TensorIOMode.INPUT", ...}."""
    dotted = {ast.unparse(node) for node in ast.walk(TREE) if isinstance(node, ast.Attribute)}
    prefix = f"{variable}."
    return {name.removeprefix(prefix) for name in dotted if name.startswith(prefix) and "(" not in name}


def missing(owner: Any, names: set[str]) -> set[str]:
    """Those of the dotted `names` that `owner` does not have."""

    def has(name: str) -> bool:
        found = owner
        for part in name.split("."):
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True

    return {name for name in names if not has(name)}


@needs_flavour
@pytest.mark.parametrize("flavour", INSTALLED)
def test_every_tensorrt_name_in_the_engine_exists(flavour: str) -> None:
    trt = importlib.import_module(flavour)
    used = {variable: used_names(variable) for variable in ("trt", "engine", "self._context", "loader")}
    assert {"execute_async_v3", "set_input_shape", "set_tensor_address"} <= used["self._context"]
    assert "TensorLocation.DEVICE" in used["trt"]
    assert not missing(trt, used["trt"])
    assert not missing(trt.ICudaEngine, used["engine"])
    assert not missing(trt.IExecutionContext, used["self._context"])
    assert not missing(trt.Runtime, used["loader"])
    assert not missing(trt.DataType, set(tensorrt._DATATYPE))


def test_every_cuda_name_in_the_engine_exists() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    calls = {
        node.args[0].value
        for node in ast.walk(TREE)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "_cuda" and isinstance(node.args[0], ast.Constant)
    }
    assert {"cudaMalloc", "cudaFree", "cudaMallocHost", "cudaFreeHost", "cudaMemcpyAsync"} <= calls
    assert not missing(runtime, calls | used_names("runtime"))


@pytest.mark.skipif(bool(probe_gpus().devices), reason="this machine has a GPU, so CUDA does not refuse")
def test_a_failing_cuda_call_is_an_error_with_the_runtimes_words() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    with pytest.raises(tensorrt._DeviceError, match=r"cudaMalloc failed with cudaError\w+ \(.+\)"):
        tensorrt._cuda("cudaMalloc", 16)


@needs_flavour
@pytest.mark.parametrize("flavour", INSTALLED)
def test_a_file_that_is_no_engine_is_refused_with_tensorrts_words(flavour: str, tmp_path: Path) -> None:
    file = tmp_path / "model.engine"
    file.write_bytes(b"this is no engine" * 64)
    with pytest.raises(EngineUnavailable) as refused:
        tensorrt._deserialize(importlib.import_module(flavour), [file])
    assert str(file) in str(refused.value)
    assert "gave no reason" not in str(refused.value)


BUILT = {"flavour": "tensorrt_rtx", "version": "1.7.1.116", "compute_capability": "8.6,8.9"}


def test_an_engine_runs_only_where_it_was_built_for() -> None:
    assert tensorrt.mismatch(BUILT, "1.7.1.116", "8.9") is None
    assert tensorrt.mismatch({**BUILT, "compute_capability": ""}, "1.7.1.116", "12.0") is None
    wrong_version = tensorrt.mismatch(BUILT, "1.8.0.1", "8.9")
    assert wrong_version and "1.7.1.116" in wrong_version and "1.8.0.1" in wrong_version
    wrong_gpu = tensorrt.mismatch(BUILT, "1.7.1.116", "9.0")
    assert wrong_gpu and "8.6, 8.9" in wrong_gpu and "9.0" in wrong_gpu


def test_an_artifact_without_a_known_flavour_is_refused(tmp_path: Path) -> None:
    artifact = Artifact(name="t", format="tensorrt", precision="fp32", status="ready", requires={"flavour": "trt9"})
    with pytest.raises(EngineUnavailable, match="'trt9'.*tensorrt or tensorrt_rtx"):
        tensorrt.TensorRT(EngineOptions([tmp_path], artifact, Signature((), ()), 1, 1))
