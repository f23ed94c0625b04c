"""What this node really has: CPU features that matter to engines, GPUs as the driver reports them, node labels.

Lists of providers or devices kept by engine libraries are not evidence (ONNX Runtime lists CUDA on machines without a
GPU), so the driver itself is asked.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import math
import os
import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from enginehouse.contract.config import ACCELERATOR_LABEL
from enginehouse.contract.manifest import Int8Products

#: Distributions that carry an engine; the first two install into one folder and overwrite each other.
ENGINE_DISTRIBUTIONS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-bindings",
)

#: Flag name of ours -> names the kernel uses for it (Linux arch/x86 cpufeatures, arm64 hwcaps).
_FLAGS: Mapping[str, tuple[str, ...]] = {
    "avx2": ("avx2",),
    "avx512f": ("avx512f",),
    "avx512_vnni": ("avx512_vnni",),
    "avx_vnni": ("avx_vnni",),
    "amx": ("amx_tile",),
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "fp16": ("avx512_fp16", "amx_fp16", "asimdhp"),
}

#: With any of them an x86-64 CPU adds products of uint8 and int8 in 32 bits.
_EXACT_INT8 = frozenset({"avx512_vnni", "avx_vnni", "amx"})
#: oneDNN's own switch (OpenVINO's int8 kernels are its), here also the way to treat a CPU as one without VNNI, and what
#: it leaves of the flags.
_ISA_LIMIT = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
_LEFT_BY: Mapping[str, frozenset[str]] = {
    "SSE41": frozenset(),
    "AVX": frozenset(),
    "AVX2": frozenset({"avx2"}),
    "AVX512_CORE": frozenset({"avx2", "avx512f"}),
}

# CUdevice_attribute and CUresult values of cuda.h.
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76


@dataclass(frozen=True, slots=True)
class Cpu:
    """`cores` are physical and `threads` logical CPUs, both as far as this process may use them (affinity, cgroup).

    `flags` are those of the known ones that the CPU has and that ONEDNN_MAX_CPU_ISA does not withhold.
    """

    model: str
    cores: int
    threads: int
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device. `compute_capability` as "9.0"; `memory_bytes` is the whole memory, not what is free."""

    name: str
    compute_capability: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Gpus:
    """Devices that the driver shows to this process, or the reason why there are none."""

    devices: tuple[Gpu, ...]
    reason: str = ""


def probe_cpu() -> Cpu:
    """This machine's CPU."""
    info = _cpuinfo()
    present = set((info.get("flags") or info.get("Features") or "").split())
    return Cpu(
        model=info.get("model name") or platform.processor() or platform.machine(),
        cores=physical_cores(),
        threads=_usable_threads(),
        flags=tuple(flag for flag, names in _FLAGS.items() if present.intersection(names) and flag in _permitted()),
    )


def int8_products() -> Int8Products:
    """How this machine's CPU multiplies int8."""
    return int8_products_of(probe_cpu().flags, platform.machine())


def int8_products_of(flags: Collection[str], machine: str) -> Int8Products:
    """How a CPU with these of our flags multiplies int8; `machine` as the platform calls it.

    Without VNNI, x86-64 adds pairs of products in 16 bits (`vpmaddubsw`), which cuts sums beyond 32767; they may reach
    64770. Arm has no such instruction.
    """
    saturates = machine in ("x86_64", "AMD64") and _EXACT_INT8.isdisjoint(flags)
    return "saturating" if saturates else "exact"


def physical_cores() -> int:
    """Physical cores that this process may use, at least 1; logical CPUs where the kernel does not tell them apart."""
    usable = _usable_threads()
    return min(psutil.cpu_count(logical=False) or usable, usable)


def probe_gpus() -> Gpus:
    """Ask the NVIDIA driver for its devices. Never raises: what is missing is in `reason`.

    Initialises the driver in this process but makes no context, so no device memory is taken.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Gpus((), "no NVIDIA driver: libcuda.so.1 cannot be loaded")
    try:
        _call(driver, "cuInit", 0)
        count = ctypes.c_int()
        _call(driver, "cuDeviceGetCount", ctypes.byref(count))
        devices = tuple(_gpu(driver, index) for index in range(count.value))
    except _DriverError as error:
        return Gpus((), f"the NVIDIA driver is installed but {error}{_visibility()}")
    return Gpus(devices) if devices else Gpus((), f"the NVIDIA driver shows no device{_visibility()}")


def node_labels() -> dict[str, str]:
    """Labels to start this node's Ray with, so that pools find their hardware."""
    return {ACCELERATOR_LABEL: "gpu" if probe_gpus().devices else "cpu"}


def engine_versions() -> dict[str, str]:
    """Installed engine distributions and their versions, read without importing any of them."""
    versions = {}
    for name in ENGINE_DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def conflicting_wheels(versions: Mapping[str, str]) -> str | None:
    """What is wrong when both ONNX Runtime wheels are in `versions` (see `engine_versions`), else None."""
    if "onnxruntime" in versions and "onnxruntime-gpu" in versions:
        return (
            f"onnxruntime {versions['onnxruntime']} and onnxruntime-gpu {versions['onnxruntime-gpu']} share one "
            "folder and overwrite each other's files; uninstall both, then install enginehouse[cpu] or enginehouse[gpu]"
        )
    return None


class _DriverError(Exception):
    """A driver call failed; the text names it."""


def _call(driver: ctypes.CDLL, function: str, *arguments: object) -> None:
    code = getattr(driver, function)(*arguments)
    if code == 0:
        return
    text = ctypes.c_char_p()
    known = driver.cuGetErrorString(code, ctypes.byref(text)) == 0 and text.value is not None
    reason = text.value.decode() if known and text.value else "unknown error"
    raise _DriverError(f"{function} failed with {code} ({reason})")


def _visibility() -> str:
    # Ray hides GPUs from actors through this variable.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if visible is None else f" (CUDA_VISIBLE_DEVICES is {visible!r})"


def _gpu(driver: ctypes.CDLL, index: int) -> Gpu:
    device = ctypes.c_int()
    _call(driver, "cuDeviceGet", ctypes.byref(device), index)
    name = ctypes.create_string_buffer(256)
    _call(driver, "cuDeviceGetName", name, len(name), device)
    memory = ctypes.c_size_t()
    _call(driver, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call(driver, "cuDeviceGetAttribute", ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)
    _call(driver, "cuDeviceGetAttribute", ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device)
    return Gpu(name.value.decode(), f"{major.value}.{minor.value}", memory.value)


def _permitted() -> Collection[str]:
    limit = next((os.environ[name] for name in _ISA_LIMIT if os.environ.get(name)), "")
    return _LEFT_BY.get(limit.upper(), _FLAGS.keys())


def _usable_threads() -> int:
    # psutil has no cpu_affinity on macOS.
    affinity = getattr(psutil.Process(), "cpu_affinity", None)
    threads = len(affinity()) if affinity else psutil.cpu_count() or 1
    return max(1, min(threads, _cgroup_cpus() or threads))


def _cgroup_cpus() -> int | None:
    """Whole CPUs of this container's quota (cgroup v2 `cpu.max`, rounded up); None without one."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else math.ceil(int(quota) / int(period))


def _cpuinfo() -> dict[str, str]:
    """Fields of the first processor in /proc/cpuinfo; empty where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
