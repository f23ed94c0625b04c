"""ONNX -> a serialized TensorRT engine, in both flavours by one code path.

Networks are strongly typed: the precision is the one of the ONNX model. TensorRT builds for the GPU that is there;
TensorRT-RTX builds one engine for a list of compute capabilities and needs no GPU for that.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginehouse.contract.errors import ConversionFailed
from enginehouse.engines.tensorrt.key import Profile
from enginehouse.engines.tensorrt.library import RTX, library, listener, readable, told

#: What TensorRT-RTX builds for where nothing narrower is asked; it knows no 9.0 (Hopper).
RTX_COMPUTE_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
#: Warnings of TensorRT that are kept as remarks.
_REMARKS = 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Built:
    """A serialized engine, the compute capabilities that it runs on, and what is worth knowing about it."""

    engine: bytes
    compute_capabilities: tuple[str, ...]
    remarks: tuple[str, ...]


def build_engine(
    onnx: Path, profile: Profile, flavour: str, compute_capabilities: Sequence[str], timing_cache: Path | None = None
) -> Built:
    """Build one engine for the ranges of `profile` and as many of `compute_capabilities` as can be had.

    `timing_cache` is a file in which measured kernels are looked up and kept, so that the next build of something
    similar is quicker; TensorRT-RTX has no such cache, because it chooses kernels where the engine runs.
    Raises EngineUnavailable without the library, ConversionFailed with what the parser or the builder said.
    """
    order = _Order(library(flavour), flavour == RTX, onnx, profile, timing_cache)
    try:
        engine, remarks = order.build(compute_capabilities)
        return Built(engine, tuple(compute_capabilities), remarks)
    except ConversionFailed:
        if len(compute_capabilities) == 1:
            raise
        # One GPU generation without a kernel fails them all (observed: no fp32 GEMM for 7.5), so each is asked alone.
        left_out = {one: fault for one in compute_capabilities if (fault := order.fault(one))}
        targets = tuple(one for one in compute_capabilities if one not in left_out)
        if not targets:
            raise
    engine, remarks = order.build(targets)
    return Built(
        engine, targets, (*(f"not for compute capability {one}: {why}" for one, why in left_out.items()), *remarks)
    )


@dataclass(frozen=True, slots=True)
class _Order:
    """What to build, but for the GPUs."""

    trt: Any
    rtx: bool
    onnx: Path
    profile: Profile
    timing_cache: Path | None

    def fault(self, compute_capability: str) -> str | None:
        """Why there can be no engine for this one alone."""
        try:
            self.build((compute_capability,))
        except ConversionFailed as error:
            return str(error)
        return None

    def build(self, compute_capabilities: Sequence[str]) -> tuple[bytes, tuple[str, ...]]:
        """An engine and remarks, or ConversionFailed."""
        trt = self.trt
        listens = listener(trt)
        try:
            builder = trt.Builder(listens)
        except TypeError:
            # What pybind11 makes of a null pointer: TensorRT finds no GPU that it can use.
            raise ConversionFailed(f"TensorRT cannot build here: {told(listens.errors)}") from None
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, listens)
        if not parser.parse_from_file(str(self.onnx)):
            faults = [str(parser.get_error(index)) for index in range(parser.num_errors)]
            raise ConversionFailed(f"TensorRT cannot read the model: {told(faults or listens.errors)}")
        config = builder.create_builder_config()
        # On by default: 10 bits of mantissa where fp32 was asked for.
        config.clear_flag(trt.BuilderFlag.TF32)
        if self.rtx:
            self._target(config, compute_capabilities)
        if self.profile:
            self._add_profile(builder, network, config, listens)
        self._read_timings(config)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise ConversionFailed(f"TensorRT cannot build the engine: {told(listens.errors)}")
        self._keep_timings(config)
        return bytes(memoryview(engine)), _remarks(listens.warnings)

    def _target(self, config: Any, compute_capabilities: Sequence[str]) -> None:
        known = self.trt.ComputeCapability.__members__
        config.num_compute_capabilities = len(compute_capabilities)
        for index, wanted in enumerate(compute_capabilities):
            name = "SM" + wanted.replace(".", "")
            if name not in known or not config.set_compute_capability(known[name], index):
                builds_for = ", ".join(f"{name[2:-1]}.{name[-1]}" for name in known if name.startswith("SM"))
                raise ConversionFailed(
                    f"TensorRT-RTX does not build for compute capability {wanted}, only for {builds_for}; "
                    "use TensorRT (enginehouse[trt]) on that GPU"
                )

    def _add_profile(self, builder: Any, network: Any, config: Any, listens: Any) -> None:
        inputs = {network.get_input(index).name for index in range(network.num_inputs)}
        if not inputs >= self.profile.keys():
            raise ConversionFailed(
                f"the model's inputs are {sorted(inputs)}, the manifest says there are {sorted(self.profile)}"
            )
        profile = builder.create_optimization_profile()
        for name, shapes in self.profile.items():
            profile.set_shape(name, *shapes)
        if config.add_optimization_profile(profile) < 0:
            raise ConversionFailed(f"TensorRT refuses the profile {dict(self.profile)}: {told(listens.errors)}")

    def _read_timings(self, config: Any) -> None:
        if self.timing_cache is None or self.rtx:
            return
        known = self.timing_cache.read_bytes() if self.timing_cache.is_file() else b""
        timings = config.create_timing_cache(known)
        # One of another version or GPU is refused; an empty one is filled instead.
        if timings is None or not config.set_timing_cache(timings, False):
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def _keep_timings(self, config: Any) -> None:
        if self.timing_cache is None or self.rtx:
            return
        temporary = self.timing_cache.with_name(f"{self.timing_cache.name}.{os.getpid()}")
        try:
            temporary.write_bytes(bytes(memoryview(config.get_timing_cache().serialize())))
            temporary.replace(self.timing_cache)
        except OSError as error:
            logger.warning("timing cache %s was not kept: %s", self.timing_cache, error)


def _remarks(warnings: Sequence[str]) -> tuple[str, ...]:
    """The first few different warnings."""
    different = list(dict.fromkeys(readable(text) for text in warnings))
    more = [f"{len(different) - _REMARKS} more warnings of TensorRT"] if len(different) > _REMARKS else []
    return (*different[:_REMARKS], *more)
