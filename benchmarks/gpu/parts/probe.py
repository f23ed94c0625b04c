"""Driver, libraries and the rates of the hardware."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial

from benchmarks.gpu.lab import Lab, Row, tried
from enginehouse.contract.errors import EngineUnavailable
from enginehouse.engines.hardware import probe_gpus
from enginehouse.engines.tensorrt.library import FLAVOURS, library

_PACKAGES = (
    "ray",
    "numpy",
    "onnx",
    "onnxruntime-gpu",
    "onnxruntime",
    "torch",
    "triton",
    "cuda-bindings",
    "transformers",
)
_SMI = "name,driver_version,memory.total,clocks.sm,clocks.mem,power.limit"


def run(lab: Lab) -> Iterator[Row]:
    """A row for each fact."""
    yield {"what": "python", "found": platform.python_version()}
    for package in _PACKAGES:
        yield {"what": package, "found": _version(package)}
    for gpu in probe_gpus().devices:
        yield {
            "what": "GPU, by the driver",
            "found": f"{gpu.name}, {gpu.compute_capability}, {gpu.memory_bytes >> 20} MiB",
        }
    yield tried({"what": "nvidia-smi"}, lambda: _smi(lab))
    yield tried({"what": "ONNX Runtime's providers"}, _providers)
    for flavour in FLAVOURS:
        yield {"what": flavour, "found": _flavour(flavour)}
    yield tried({"what": "CUDA runtime"}, lambda: _runtime(lab))
    yield tried({"what": "rates of a matrix product and a copy"}, partial(_rates, lab))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _smi(lab: Lab) -> Row:
    lab.need_gpu()
    if shutil.which("nvidia-smi") is None:
        return {"found": "not installed"}
    command = ["nvidia-smi", f"--query-gpu={_SMI}", "--format=csv,noheader"]
    return {"found": subprocess.run(command, capture_output=True, text=True, timeout=15, check=True).stdout.strip()}


def _providers() -> Row:
    import onnxruntime

    return {"found": f"{', '.join(onnxruntime.get_available_providers())}; {onnxruntime.get_build_info()}"}


def _flavour(flavour: str) -> str:
    try:
        return f"{library(flavour).__version__} loads"
    except EngineUnavailable as error:
        return str(error)


def _runtime(lab: Lab) -> Row:
    lab.need_gpu()
    from enginehouse.engines.tensorrt.device import cuda

    return {"found": f"runtime {cuda('cudaRuntimeGetVersion')}, driver {cuda('cudaDriverGetVersion')}"}


def _rates(lab: Lab) -> Row:
    rates = importlib.import_module("benchmarks.gpu.rates").measured(lab)
    products = ", ".join(f"{name} {rate * 1e-12:.3g}" for name, rate in rates.flops.items())
    return {"found": f"{products} TFLOP/s; {rates.bandwidth * 1e-9:.3g} GB/s, read and written"}
