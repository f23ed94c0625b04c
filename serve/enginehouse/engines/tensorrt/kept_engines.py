"""Engines built on this node because the bundle's own does not fit it: once per key, kept for the next load.

    CACHE/engines/<digest of the key>/model.engine    whole and checked, or not there
    CACHE/engines/<digest of the key>/key.json        what it is: the key, its sha256, how long it took, remarks
    CACHE/engines/<digest of the key>.lock            held by the one process that builds it

CACHE is that of `enginehouse.contract.store.cache`. Nothing is ever removed from it but what a killed builder left.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from enginehouse.contract.bundle import sha256_of
from enginehouse.contract.errors import ConversionFailed, EnginehouseError, EngineUnavailable
from enginehouse.contract.store.cache import private_cache
from enginehouse.engines import EngineOptions
from enginehouse.engines.tensorrt.key import (
    EngineKey,
    NodeFacts,
    Profile,
    mismatch,
    profile_of,
    profile_text,
)
from enginehouse.engines.tensorrt.library import KIND
from enginehouse.engines.worker_process import WorkerDied, WorkerProcess

ENGINE_FILE = "model.engine"
KEY_FILE = "key.json"
_MAKER = "enginehouse.engines.tensorrt.make"
#: Large transformers take TensorRT the better part of an hour.
BUILD_LIMIT_S = 2 * 3600.0


@dataclass(frozen=True, slots=True)
class EngineFile:
    """An engine that fits the node; `built_here` when it is not the one that the bundle was published with."""

    path: Path
    key: EngineKey
    built_here: bool


def engine_file(options: EngineOptions, node: NodeFacts, tell: Callable[[str], None]) -> EngineFile:
    """The bundle's engine if it fits `node`, else one from the cache, else a new one built from the bundle's ONNX.

    `tell` is called with what is built, why, and how it went. Raises EngineUnavailable when it cannot be built.
    """
    onnx = _only(options, ".onnx")
    try:
        profile = profile_of(options.signature, options.max_rows, options.axes)
    except ConversionFailed as error:
        raise EngineUnavailable(KIND, str(error)) from None
    key = EngineKey(
        onnx=sha256_of(onnx),
        precision=options.artifact.precision,
        profile=profile_text(profile),
        flavour=node.flavour,
        version=node.version,
        compute_capability=node.compute_capability,
    )
    reason = mismatch(options.artifact.requires, key)
    if reason is None:
        return EngineFile(_only(options, ".engine"), key, built_here=False)
    # Engines are code: none that another user could have put there.
    folder = private_cache("engines") / key.digest
    one = f"one for {node.compute_capability} with {node.flavour} {node.version}"
    if is_whole(folder):
        when = "earlier"
    else:
        tell(f"{reason}; building {one}")
        when = "now" if _make(folder, onnx, key, profile) else "by another process"
    made = json.loads((folder / KEY_FILE).read_text())
    tell("; ".join([f"{reason}; {one} was built here {when}, in {made['seconds']:.1f} s", *made["remarks"]]))
    return EngineFile(folder / ENGINE_FILE, key, built_here=True)


def is_whole(folder: Path) -> bool:
    """Whether there is an engine in `folder` that is still what was built."""
    try:
        made = json.loads((folder / KEY_FILE).read_bytes())
        return bool(made["sha256"] == sha256_of(folder / ENGINE_FILE))
    except (OSError, ValueError, KeyError):
        return False


def _make(folder: Path, onnx: Path, key: EngineKey, profile: Profile) -> bool:
    """Have `folder` made by a child process: a crash in TensorRT's builder must not end a replica with all its models.

    True if it was this child that built it, False if another process was quicker.
    """
    with tempfile.NamedTemporaryFile() as log, WorkerProcess(_MAKER, log=Path(log.name)) as builder:
        try:
            builder.send((folder, onnx, key, profile))
            if builder.poll(BUILD_LIMIT_S):
                return bool(builder.receive())
        except WorkerDied as died:
            raise EngineUnavailable(KIND, f"the process that builds it {died}") from None
        except EnginehouseError as error:
            raise EngineUnavailable(KIND, str(error)) from None
    raise EngineUnavailable(KIND, f"TensorRT did not finish within {BUILD_LIMIT_S:g} s; it was stopped")


def _only(options: EngineOptions, suffix: str) -> Path:
    found = [file for file in options.files if file.suffix == suffix]
    if len(found) != 1:
        raise EngineUnavailable(
            KIND, f"artifact {options.artifact.name!r} has {len(found)} {suffix} files, it needs exactly 1"
        )
    return found[0]
