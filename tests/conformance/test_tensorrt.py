"""What can be said of the TensorRT engine without a GPU: its names are real, its refusals are right."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from enginehouse.engines import EngineOptions
from enginehouse.engines.tensorrt import builder, fitted, library, runtime
from enginehouse.errors import EngineUnavailable
from enginehouse.hardware import probe_gpus
from enginehouse.manifest import Artifact
from enginehouse.tensors import Signature

INSTALLED = [name for name in library.FLAVOURS if importlib.util.find_spec(name.replace("-", "_"))]
needs_flavour = pytest.mark.skipif(not INSTALLED, reason="neither tensorrt nor tensorrt_rtx is installed")


def dotted_names(module: ModuleType, variable: str) -> set[str]:
    """Names that a module's source reads from `variable`: `trt` -> {"Runtime", "TensorIOMode.INPUT", ...}."""
    tree = ast.parse(inspect.getsource(module))
    dotted = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
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
def test_every_tensorrt_name_that_runs_an_engine_exists(flavour: str) -> None:
    trt = library.library(flavour)
    used = {name: dotted_names(runtime, name) for name in ("trt", "engine", "self._context", "loader")}
    assert {"execute_async_v3", "set_input_shape", "set_tensor_address"} <= used["self._context"]
    assert "TensorLocation.DEVICE" in used["trt"]
    assert not missing(trt, used["trt"] - {"__name__", "__version__"})
    assert not missing(trt.ICudaEngine, used["engine"])
    assert not missing(trt.IExecutionContext, used["self._context"])
    assert not missing(trt.Runtime, used["loader"])
    assert not missing(trt.DataType, set(runtime._DATATYPE))


@needs_flavour
@pytest.mark.parametrize("flavour", INSTALLED)
def test_every_tensorrt_name_that_builds_an_engine_exists(flavour: str) -> None:
    trt = library.library(flavour)
    used = {name: dotted_names(builder, name) for name in ("trt", "builder", "network", "parser", "config", "profile")}
    assert {"BuilderFlag.TF32", "OnnxParser"} <= used["trt"]
    assert {"create_timing_cache", "set_timing_cache", "get_timing_cache"} <= used["config"]
    only_rtx = {"num_compute_capabilities", "set_compute_capability"}
    assert only_rtx <= used["config"]
    assert not missing(trt, used["trt"])
    assert not missing(trt, dotted_names(library, "trt"))
    assert not missing(trt.Builder, used["builder"])
    assert not missing(trt.INetworkDefinition, used["network"])
    assert not missing(trt.OnnxParser, used["parser"])
    assert not missing(trt.IBuilderConfig, used["config"] - (set() if flavour == library.RTX else only_rtx))
    assert not missing(trt.IOptimizationProfile, used["profile"])


def test_every_cuda_name_in_the_engine_exists() -> None:
    cuda = pytest.importorskip("cuda.bindings.runtime")
    calls = {
        node.args[0].value
        for node in ast.walk(ast.parse(inspect.getsource(runtime)))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "_cuda" and isinstance(node.args[0], ast.Constant)
    }
    assert {"cudaMalloc", "cudaFree", "cudaMallocHost", "cudaFreeHost", "cudaMemcpyAsync"} <= calls
    assert not missing(cuda, calls | dotted_names(runtime, "runtime"))


@pytest.mark.skipif(bool(probe_gpus().devices), reason="this machine has a GPU, so CUDA does not refuse")
def test_a_failing_cuda_call_is_an_error_with_the_runtimes_words() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    with pytest.raises(runtime._DeviceError, match=r"cudaMalloc failed with cudaError\w+ \(.+\)"):
        runtime._cuda("cudaMalloc", 16)


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
