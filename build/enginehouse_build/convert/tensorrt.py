"""ONNX -> the files of a TensorRT artifact: the model it is built from and, where one can be built here, the engine.

Where none can, the first node that loads the artifact builds its own (see `enginehouse.engines.tensorrt.kept_engines`).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from enginehouse.contract.bundle import sha256_of
from enginehouse.contract.errors import EngineUnavailable
from enginehouse.contract.manifest import Axis, Precision
from enginehouse.contract.tensors import Signature
from enginehouse.engines.hardware import probe_gpus
from enginehouse.engines.tensorrt.builder import RTX_COMPUTE_CAPABILITIES, build_engine
from enginehouse.engines.tensorrt.kept_engines import ENGINE_FILE
from enginehouse.engines.tensorrt.key import EngineKey, profile_of, profile_text
from enginehouse.engines.tensorrt.library import RTX, installed_flavour, library

ONNX_FILE = "model.onnx"


@dataclass(frozen=True, slots=True)
class Converted:
    """What the artifact requires of the process that loads it, and what is worth knowing about it.

    With any relative L2 limit within `limits`, the least and the largest, the very same comes out.
    """

    requires: dict[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    limits: tuple[float, float] = (0.0, math.inf)


def convert(
    onnx: Path,
    folder: Path,
    signature: Signature,
    max_rows: int,
    axes: Sequence[Axis],
    precision: Precision,
    timing_cache: Path | None,
) -> Converted:
    """Write `model.onnx` and, if this machine can build it, `model.engine` for 1 to `max_rows` rows into `folder`.

    `precision` is that of the ONNX model. Without an engine the requirements name no TensorRT, and a remark says why.
    Raises ConversionFailed with what TensorRT's parser or builder said, or for a free dimension without an axis.
    """
    profile = profile_of(signature, max_rows, axes)
    model = folder / ONNX_FILE
    if not model.exists():
        shutil.copyfile(onnx, model)
    of_model = {"onnx": sha256_of(model), "precision": precision, "profile": profile_text(profile)}
    try:
        flavour = installed_flavour()
        targets = RTX_COMPUTE_CAPABILITIES if flavour == RTX else _local_compute_capability()
        built = build_engine(model, profile, flavour, targets, timing_cache)
    except EngineUnavailable as error:
        return Converted(of_model, (f"the engine is built where it is first loaded: {error.args[1]}",))
    (folder / ENGINE_FILE).write_bytes(built.engine)
    key = EngineKey(
        **of_model,
        flavour=flavour,
        version=str(library(flavour).__version__),
        compute_capability=",".join(built.compute_capabilities),
    )
    return Converted(key.record(), built.remarks)


def _local_compute_capability() -> tuple[str, ...]:
    gpus = probe_gpus()
    if not gpus.devices:
        raise EngineUnavailable("tensorrt", f"TensorRT builds only where the GPU is: {gpus.reason}")
    return (gpus.devices[0].compute_capability,)
