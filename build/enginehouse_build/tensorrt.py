"""ONNX -> a serialized TensorRT engine, with TensorRT or TensorRT-RTX: one code path, whichever is installed.

Networks are strongly typed: the precision is the one of the ONNX model. TensorRT builds for the GPU that is there;
TensorRT-RTX builds one engine for a list of compute capabilities and needs no GPU for that.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from enginehouse.errors import ConversionFailed, EngineUnavailable
from enginehouse.hardware import probe_gpus
from enginehouse.tensors import Signature

ENGINE_FILE = "model.engine"
#: What TensorRT-RTX engines are built for; it knows no 9.0 (Hopper).
RTX_COMPUTE_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0")


def convert(onnx: Path, folder: Path, signature: Signature, max_rows: int) -> tuple[dict[str, str], str]:
    """Write an engine for 1 to `max_rows` rows into `folder`.

    Returns what the process that loads it must match, and which wanted compute capabilities were left out and why.
    Raises EngineUnavailable where no TensorRT can build, ConversionFailed with what the parser or builder said.
    """
    flavour, library = _library()
    targets = RTX_COMPUTE_CAPABILITIES if flavour == "tensorrt-rtx" else _local_compute_capability()
    left_out: dict[str, str] = {}
    try:
        engine = _built(flavour, library, onnx, signature, max_rows, targets)
    except ConversionFailed:
        if len(targets) == 1:
            raise
        # One GPU generation without a kernel fails them all (observed: no fp32 GEMM for 7.5), so each is asked alone.
        for target in targets:
            try:
                _built(flavour, library, onnx, signature, max_rows, (target,))
            except ConversionFailed as error:
                left_out[target] = str(error)
        targets = tuple(target for target in targets if target not in left_out)
        if not targets:
            raise
        engine = _built(flavour, library, onnx, signature, max_rows, targets)
    (folder / ENGINE_FILE).write_bytes(engine)
    requires = {"flavour": flavour, "version": str(library.__version__), "compute_capability": ",".join(targets)}
    return requires, "; ".join(f"not for compute capability {target}: {why}" for target, why in left_out.items())


def _built(
    flavour: str, library: Any, onnx: Path, signature: Signature, max_rows: int, targets: tuple[str, ...]
) -> bytes:
    """One serialized engine for all of `targets`, or ConversionFailed."""
    log = _collector(library)
    builder = library.Builder(log)
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx)):
        told = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        raise ConversionFailed(f"TensorRT cannot read the model: {_first(told or log.errors)}")
    config = builder.create_builder_config()
    # On by default: 10 bits of mantissa where fp32 was asked for.
    config.clear_flag(library.BuilderFlag.TF32)
    if flavour == "tensorrt-rtx":
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            if not config.set_compute_capability(_compute_capability(library, target), index):
                raise ConversionFailed(f"TensorRT-RTX does not build for compute capability {target}")
    if signature.batched:
        config.add_optimization_profile(_profile(builder, signature, max_rows))
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ConversionFailed(f"TensorRT cannot build the engine: {_first(log.errors)}")
    return bytes(memoryview(engine))


def _library() -> tuple[str, Any]:
    missing = []
    for flavour, module in (("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx")):
        try:
            return flavour, importlib.import_module(module)
        except (ImportError, OSError) as error:
            missing.append(f"{module}: {error}")
    raise EngineUnavailable("tensorrt", f"{'; '.join(missing)}; install enginehouse[trt] or enginehouse[trt-rtx]")


def _local_compute_capability() -> tuple[str, ...]:
    gpus = probe_gpus()
    if not gpus.devices:
        raise EngineUnavailable("tensorrt", f"TensorRT builds only where the GPU is: {gpus.reason}")
    return (gpus.devices[0].compute_capability,)


def _compute_capability(library: Any, target: str) -> Any:
    return getattr(library.ComputeCapability, "SM" + target.replace(".", ""))


def _profile(builder: Any, signature: Signature, max_rows: int) -> Any:
    profile = builder.create_optimization_profile()
    for spec in signature.inputs:
        rest = list(spec.shape[1:])
        if None in rest:
            raise ConversionFailed(
                f"input {spec}: TensorRT needs a range for every free dimension, and only the batch has one; "
                "fix the others in the model"
            )
        profile.set_shape(spec.name, [1, *rest], [max(1, max_rows // 2), *rest], [max_rows, *rest])
    return profile


def _collector(library: Any) -> Any:
    """A TensorRT logger that keeps error texts instead of printing them."""

    class Collector(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            # pybind11 refuses an object whose base was not initialised by name.
            library.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in (library.ILogger.Severity.ERROR, library.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(text)

    return Collector()


def _first(told: list[str]) -> str:
    text = " | ".join(" ".join(line.split()) for line in told[:2]) or "no reason was given"
    # Places in TensorRT's own source say nothing to anybody else.
    text = re.sub(r"(IBuilder::buildSerializedNetwork: )|( In \S+ at /\S+?:\d+)", "", text)
    return text if len(text) <= 400 else text[:400] + "..."
