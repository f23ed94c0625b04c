"""The probe says what is there; what is missing is a reason, never an exception."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from enginehouse.engines import hardware

HAS_DRIVER = Path("/proc/driver/nvidia/version").exists()


def test_the_cpu_has_at_least_one_core_and_no_more_than_it_may_use() -> None:
    cpu = hardware.probe_cpu()
    assert 1 <= cpu.cores <= cpu.threads <= (os.cpu_count() or 1)
    assert cpu.cores == hardware.physical_cores()
    assert cpu.model


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs /proc/cpuinfo")
def test_cpu_flags_are_those_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in hardware._ISA_LIMIT:
        monkeypatch.delenv(name, raising=False)
    text = Path("/proc/cpuinfo").read_text()
    for flag in hardware.probe_cpu().flags:
        assert any(name in text for name in hardware._FLAGS[flag])
    assert ("avx512_vnni" in text) == ("avx512_vnni" in hardware.probe_cpu().flags)


@pytest.mark.parametrize(
    ("flags", "machine", "products"),
    [
        (("avx2",), "x86_64", "saturating"),
        (("avx2", "avx512f"), "x86_64", "saturating"),
        (("avx2", "avx512f", "avx512_vnni"), "x86_64", "exact"),
        (("avx2", "avx_vnni"), "x86_64", "exact"),
        (("avx2", "avx512f", "amx"), "AMD64", "exact"),
        ((), "aarch64", "exact"),
    ],
)
def test_only_x86_without_vnni_cuts_products_of_int8(flags: tuple[str, ...], machine: str, products: str) -> None:
    assert hardware.int8_products_of(flags, machine) == products


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the switch is for x86-64")
@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_a_cpu_is_treated_as_one_without_vnni_where_onednn_is(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for each in hardware._ISA_LIMIT:
        monkeypatch.delenv(each, raising=False)
    everything = hardware.probe_cpu().flags
    monkeypatch.setenv(name, "avx512_core")
    assert hardware.probe_cpu().flags == tuple(flag for flag in everything if flag in ("avx2", "avx512f"))
    assert hardware.int8_products() == "saturating"
    for limit in ("avx512_core_amx", "ALL"):
        monkeypatch.setenv(name, limit)
        assert hardware.probe_cpu().flags == everything


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_a_process_that_may_use_one_cpu_counts_one() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from enginehouse.engines.hardware import probe_cpu; cpu = probe_cpu()\n"
    code += "assert (cpu.cores, cpu.threads) == (1, 1)"
    environment = {**os.environ, "PYTHONPATH": str(Path(hardware.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)


def test_gpus_are_either_described_or_explained() -> None:
    gpus = hardware.probe_gpus()
    assert bool(gpus.devices) != bool(gpus.reason)
    for gpu in gpus.devices:
        assert gpu.name
        assert gpu.memory_bytes > 2**30
        assert all(part.isdecimal() for part in gpu.compute_capability.split("."))


@pytest.mark.skipif(HAS_DRIVER, reason="this machine has an NVIDIA driver")
def test_without_a_driver_the_reason_names_its_library() -> None:
    with pytest.raises(OSError):
        ctypes.CDLL("libcuda.so.1")
    assert "libcuda.so.1" in hardware.probe_gpus().reason
    assert hardware.node_labels() == {"enginehouse.io/accelerator": "cpu"}


@pytest.mark.skipif(not HAS_DRIVER, reason="no NVIDIA driver on this machine")
def test_hidden_gpus_are_explained_by_the_variable_that_hides_them() -> None:
    code = "from enginehouse.engines.hardware import probe_gpus; print(probe_gpus().reason)"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(Path(hardware.__file__).parents[2])}
    told = subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60, capture_output=True)
    assert b"CUDA_VISIBLE_DEVICES" in told.stdout


def test_engine_versions_are_read_without_importing_engines() -> None:
    code = "import sys; from enginehouse.engines.hardware import engine_versions, node_labels\n"
    code += "engine_versions(), node_labels()\n"
    code += "assert not {'onnxruntime', 'openvino', 'tensorrt', 'tensorrt_rtx', 'cuda', 'ray'} & sys.modules.keys()"
    environment = {**os.environ, "PYTHONPATH": str(Path(hardware.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)
    assert hardware.engine_versions().keys() <= set(hardware.ENGINE_DISTRIBUTIONS)


def test_two_onnxruntime_wheels_are_a_conflict() -> None:
    both = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.0"}
    told = hardware.conflicting_wheels(both)
    assert told
    assert all(word in told for word in ("onnxruntime 1.31.1", "onnxruntime-gpu 1.31.0", "enginehouse[gpu]"))
    assert hardware.conflicting_wheels({"onnxruntime": "1.31.1", "openvino": "2026.4"}) is None
