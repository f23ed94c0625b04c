"""Every name of a vendor's library that we use exists in the real one, whether or not this machine could run it."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import mmap
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from benchmarks.gpu import sessions
from benchmarks.gpu.parts import memory, probe, transfer
from tests.conformance.bindings import real_bindings

from enginehouse.engines import onnxruntime as cuda_engine
from enginehouse.engines.tensorrt import builder, device, library, runtime

BINDINGS = "tensorrt-cu13-bindings"
FLAVOURS = [*library.FLAVOURS, BINDINGS]


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


@pytest.fixture(scope="module", params=FLAVOURS)
def trt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """TensorRT's module, or all names of one."""
    if request.param == BINDINGS:
        return real_bindings(tmp_path_factory.mktemp("bindings"))
    return pytest.importorskip(request.param.replace("-", "_"))


def test_every_tensorrt_name_that_runs_an_engine_exists(trt: Any) -> None:
    used = {name: dotted_names(runtime, name) for name in ("trt", "engine", "self._context", "loader")}
    assert {"execute_async_v3", "set_input_shape", "set_tensor_address"} <= used["self._context"]
    assert "TensorLocation.DEVICE" in used["trt"]
    assert not missing(trt, used["trt"] - {"__name__"})
    assert not missing(trt.ICudaEngine, used["engine"])
    assert not missing(trt.IExecutionContext, used["self._context"])
    assert not missing(trt.Runtime, used["loader"])
    assert not missing(trt.DataType, set(runtime._DATATYPE))


def test_every_tensorrt_name_that_builds_an_engine_exists(trt: Any) -> None:
    used = {name: dotted_names(builder, name) for name in ("trt", "builder", "network", "parser", "config", "profile")}
    assert {"BuilderFlag.TF32", "OnnxParser"} <= used["trt"]
    assert {"create_timing_cache", "set_timing_cache", "get_timing_cache"} <= used["config"]
    only_rtx = {"num_compute_capabilities", "set_compute_capability"}
    assert only_rtx <= used["config"]
    is_rtx = hasattr(trt.IBuilderConfig, "set_compute_capability")
    assert not missing(trt, used["trt"])
    assert not missing(trt, dotted_names(library, "trt"))
    assert not missing(trt.Builder, used["builder"])
    assert not missing(trt.INetworkDefinition, used["network"])
    assert not missing(trt.OnnxParser, used["parser"])
    assert not missing(trt.IBuilderConfig, used["config"] - (set() if is_rtx else only_rtx))
    assert not missing(trt.IOptimizationProfile, used["profile"])


def test_a_name_that_does_not_exist_is_found_out(trt: Any) -> None:
    assert missing(trt, {"Runtime", "BuilderFlag.FP17", "ILogger.Severity.ERROR"}) == {"BuilderFlag.FP17"}
    assert missing(trt.IExecutionContext, {"execute_async_v9", "execute_async_v3"}) == {"execute_async_v9"}


def cuda_calls(*modules: ModuleType) -> set[str]:
    """Functions of the CUDA runtime that are called by name."""
    return {
        str(node.args[0].value)
        for module in modules
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "cuda" and isinstance(node.args[0], ast.Constant)
    }


def test_every_cuda_name_exists() -> None:
    cuda = pytest.importorskip("cuda.bindings.runtime")
    calls = cuda_calls(device, runtime, memory, probe, transfer)
    assert {"cudaMalloc", "cudaFree", "cudaMallocHost", "cudaFreeHost", "cudaMemcpyAsync", "cudaMemGetInfo"} <= calls
    assert not missing(cuda, calls | dotted_names(device, "runtime"))


def provider_library(folder: Path) -> Path:
    """ONNX Runtime's CUDA provider, as installed or out of a gathered wheel (`benchmarks.gpu.wheels`); else skips."""
    name = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
    installed = importlib.util.find_spec("onnxruntime")
    if installed and installed.origin and (found := Path(installed.origin).parents[1] / name).is_file():
        return found
    wheels = sorted(Path(sessions.__file__).parents[1].glob(".gpu/*/files/wheels/onnxruntime_gpu-*.whl"))
    if not wheels:
        pytest.skip("onnxruntime-gpu is neither installed nor gathered")
    with zipfile.ZipFile(wheels[-1]) as wheel:
        return Path(wheel.extract(name, folder))


def test_every_setting_of_the_cuda_provider_exists(tmp_path: Path) -> None:
    tree = ast.parse(inspect.getsource(cuda_engine.OnnxRuntimeCuda))
    served = {
        ast.literal_eval(key) for node in ast.walk(tree) if isinstance(node, ast.Dict) for key in node.keys if key
    }
    served -= {"session.record_ep_graph_assignment_info"}
    assert served == {"device_id", "use_tf32"}
    with provider_library(tmp_path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        names = served | set(sessions.CUDA_OPTIONS) | {"user_compute_stream", "EXHAUSTIVE", "HEURISTIC"}
        lost = {name for name in names if content.find(name.encode()) < 0}
        assert not lost
        assert content.find(b"use_tf33") < 0
