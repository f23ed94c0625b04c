"""int8 on both kinds of CPU: those that add up products of uint8 and int8 exactly, and x86-64 without VNNI.

A CPU without VNNI is made of this one: for OpenVINO by oneDNN's own switch, for ONNX Runtime, which has none, by QEMU.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from enginehouse.contract.bundle import Bundle
from enginehouse.contract.manifest import Manifest
from enginehouse.contract.parity import LIMITS
from enginehouse.engines import load_engine
from enginehouse.engines.hardware import int8_products
from enginehouse.engines.onnxruntime import OnnxRuntimeCpu

from .small_nets import attention

LIMIT = LIMITS["int8"].relative_l2
#: Withholds VNNI and AMX from oneDNN, and from what `probe_cpu` tells.
WITHOUT_VNNI = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
QEMU = shutil.which("qemu-x86_64")
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="products of int8 saturate on x86-64 only"
)


def on_cpu(*arguments: str | Path, environment: Mapping[str, str], emulator: Sequence[str] = ()) -> str:
    command = [*emulator, sys.executable, "-m", "tests.pipeline.on_cpu", *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


def asked(bundle: Bundle, *kinds: str, **how: Any) -> Mapping[str, Mapping[str, Any]]:
    told: Mapping[str, Mapping[str, Any]] = json.loads(on_cpu("ask", bundle.path, *kinds, **how))
    return told


def built(folder: Path, environment: Mapping[str, str]) -> Bundle:
    """A small attention whose products saturate, built by a process that sees the CPU that `environment` leaves."""
    folder.mkdir(parents=True)
    source, requests = attention(folder)
    rows = {name: np.concatenate([request[name] for request in requests]) for name in requests[0]}
    np.savez(folder / "samples.npz", **rows)  # type: ignore[arg-type]
    path = on_cpu("build", source, folder / "samples.npz", folder / "store", environment=environment)
    return Bundle.open(Path(path))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Built on this CPU as it is."""
    return built(tmp_path_factory.mktemp("here") / "m", {})


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Built without VNNI."""
    return built(tmp_path_factory.mktemp("there") / "m", WITHOUT_VNNI)


def remarks(manifest: Manifest, name: str) -> str:
    return "; ".join(manifest.artifact(name).remarks)


def test_int8_is_ready_on_both_kinds_and_says_for_which_it_was_made(here: Bundle, there: Bundle) -> None:
    for bundle, products in ((here, int8_products()), (there, "saturating")):
        for artifact in bundle.manifest.artifacts:
            assert (artifact.status, artifact.reason) == ("ready", None)
            assert artifact.int8_products == (products if artifact.precision == "int8" else None)
        precise = products == "saturating"
        assert ("no VNNI: ONNX Runtime computes int8 in its precise mode" in remarks(bundle.manifest, "onnx-int8")) == (
            precise
        )
        assert ("no VNNI: the weights have 7 bits" in remarks(bundle.manifest, "openvino-int8")) == precise


def test_openvino_is_precise_without_vnni(there: Bundle) -> None:
    told = asked(there, "openvino-cpu", environment=WITHOUT_VNNI)["openvino-cpu"]
    assert told["engine"] < LIMIT
    assert told["precision"] == "int8"
    # With 7 bits of weight no care is needed.
    assert told["library"] < LIMIT


@pytest.mark.skipif(int8_products() == "saturating", reason="needs VNNI: what is made here is made for CPUs without it")
def test_openvino_computes_in_fp32_what_would_saturate(here: Bundle) -> None:
    told = asked(here, "openvino-cpu", environment=WITHOUT_VNNI)["openvino-cpu"]
    # The CPU really is one that cuts products, or the rest would prove nothing.
    assert told["library"] > 3 * LIMIT
    assert told["engine"] < LIMIT
    assert told["precision"] == "fp32"
    at_home = asked(here, "openvino-cpu", environment={})["openvino-cpu"]
    assert at_home["precision"] == "int8"
    assert at_home["engine"] == at_home["library"] < LIMIT


@pytest.mark.skipif(QEMU is None, reason="needs qemu-x86_64 (Debian: qemu-user): a CPU without VNNI for ONNX Runtime")
def test_onnx_runtime_is_precise_without_vnni(here: Bundle, there: Bundle) -> None:
    assert QEMU is not None
    for bundle in (here, there):
        told = asked(
            bundle, "onnxruntime-cpu", environment={"ONEDNN_MAX_CPU_ISA": "AVX2"}, emulator=[QEMU, "-cpu", "Haswell"]
        )["onnxruntime-cpu"]
        assert told["library"] > 3 * LIMIT
        assert told["engine"] < LIMIT
        assert told["precision"] == "int8"


def test_onnx_runtime_has_uint8_weights_only_where_int8_would_saturate(here: Bundle, tmp_path: Path) -> None:
    artifact = here.manifest.artifact("onnx-int8")
    engine = load_engine("onnxruntime-cpu", here, artifact, threads=1)
    assert isinstance(engine, OnnxRuntimeCpu)
    options = engine._session.get_session_options()
    engine.close()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    (model,) = here.verified_files(artifact)
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "run.onnx").graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    layers = [found for found in graph.node if found.op_type in ("MatMulIntegerToFloat", "QLinearMatMul", "QGemm")]
    # With VNNI they would take twice as long for nothing.
    wanted = onnx.TensorProto.UINT8 if int8_products() == "saturating" else onnx.TensorProto.INT8
    at = {"MatMulIntegerToFloat": 1, "QLinearMatMul": 3, "QGemm": 3}
    assert len(layers) == 4
    assert {types[found.input[at[found.op_type]]] for found in layers} == {wanted}
