"""Engines: a loaded artifact that can infer in this process.

The seam is one small protocol; each kind lives in its own file, which alone imports that kind's library, lazily.

| kind               | artifact format | file              |
|--------------------|-----------------|-------------------|
| `onnxruntime-cpu`  | onnx            | onnxruntime.py    |
| `onnxruntime-cuda` | onnx            | onnxruntime.py    |
| `openvino-cpu`     | openvino        | openvino.py       |
| `tensorrt`         | tensorrt        | tensorrt/         |
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from enginehouse.contract.bounds import InputBounds
from enginehouse.contract.bundle import Bundle
from enginehouse.contract.errors import ConfigError, InvalidInput
from enginehouse.contract.latency import AS_GOOD
from enginehouse.contract.manifest import ENGINE_KINDS, FORMAT_OF, Artifact, Axis, EngineKind
from enginehouse.contract.tensors import Signature, Tensors
from enginehouse.engines.recheck import bounds_here, needs_recheck, recheck
from enginehouse.engines.silence import keep_silent
from enginehouse.engines.usual import UsualRequests

logger = logging.getLogger(__name__)

# Whoever imports a library of an engine has imported this package, also the processes of a build.
keep_silent()


class Engine(Protocol):
    """Constructed means loaded and able to answer; `infer` may be called from several threads at once."""

    signature: Signature
    precision: str
    """The precision the engine really computes in, as it reports it itself (not the one asked for)."""
    inputs_only: InputBounds
    """For which values of its inputs it is right: those of the artifact, and what loading it here has found."""

    def infer(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Run one batch. The caller owns the outputs. Raises InvalidInput or InferenceFailed."""

    def close(self) -> None:
        """Release the engine's memory; `infer` raises EngineUnavailable from then on. May be called twice."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an engine is built with: files already verified, and the limits it may count on.

    `threads` are intra-op CPU threads; `concurrency` is how many `infer` calls may run at once; `max_rows` is the
    largest batch and `axes` the ranges of other free dimensions (device buffers are sized by them).
    """

    files: Sequence[Path]
    artifact: Artifact
    signature: Signature
    max_rows: int
    threads: int
    concurrency: int = 1
    axes: Sequence[Axis] = ()


def load_engine(
    kind: EngineKind,
    bundle: Bundle,
    artifact: Artifact,
    *,
    threads: int,
    concurrency: int = 1,
    warm_rows: int | None = None,
    tell: Callable[[str], None] = logger.warning,
    loaded: Callable[[], None] = lambda: None,
) -> Engine:
    """Verify the artifact's digests, load it and warm up every batch bucket, up to `warm_rows` if that is given.

    A TensorRT engine that does not fit this node is first built here, which may take minutes; `tell` is called with
    what is done. `loaded` is called when its library has loaded it, before it computes for the first time.
    What nobody has verified yet, or only where it is computed otherwise, answers the bundle's check requests and probes
    first.
    Raises ArtifactMissing, DigestMismatch, or EngineUnavailable with the reason; never starts another engine instead.
    """
    if artifact.format != FORMAT_OF[kind]:
        raise ConfigError(
            f"engine {kind!r} loads {FORMAT_OF[kind]!r} artifacts; {artifact.name!r} is {artifact.format!r}"
        )
    manifest = bundle.manifest
    options = EngineOptions(
        files=bundle.verified_files(artifact),
        artifact=artifact,
        signature=manifest.request_signature(),
        max_rows=manifest.max_batch,
        threads=threads,
        concurrency=concurrency,
        axes=manifest.axes,
    )
    if kind == "tensorrt":
        from enginehouse.engines.tensorrt import fitted

        options = fitted(options, tell)
    engine = _constructor(kind)(options)
    try:
        loaded()
        if needs_recheck(kind, manifest, options.artifact):
            recheck(kind, engine.infer, bundle, artifact)
            engine.inputs_only = bounds_here(kind, engine.infer, bundle, artifact)
        warm_up(engine, bundle, warm_rows)
    except BaseException:
        engine.close()
        raise
    return engine


def time_calls(engine: Engine, bundle: Bundle) -> list[tuple[int, float]]:
    """(rows, milliseconds) of a call with one row and with a full batch: the best of three, of a warm engine.

    Enough to rank an engine that was made on this node; the build's latency table is the careful one.
    """
    found = []
    usual = UsualRequests(bundle)
    for rows in sorted({1, bundle.manifest.max_batch}):
        inputs = usual.of(rows)
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            engine.infer(inputs)
            seconds.append(time.perf_counter() - began)
        found.append((rows, min(seconds) * 1e3))
    return found


def best_batch(engine: Engine, bundle: Bundle, most: int) -> int:
    """The smallest batch up to `most` as good as the best (`AS_GOOD`) on this very engine, by five rounds of each.

    The latency table's answer is for its own number of threads: what two threads gain from a batch, one may lose to the
    caches. Sizes take turns, so that whatever else the node does meets all of them.
    """
    seconds: dict[int, list[float]] = {rows: [] for rows in bundle.manifest.batch_buckets(most)}
    usual = UsualRequests(bundle)
    for _ in range(5):
        for rows, taken in seconds.items():
            inputs = usual.of(rows)
            began = time.perf_counter()
            engine.infer(inputs)
            taken.append(time.perf_counter() - began)
    rates = {rows: rows / statistics.median(taken) for rows, taken in seconds.items()}
    return min(rows for rows, rate in rates.items() if rate >= AS_GOOD * max(rates.values()))


def warm_up(engine: Engine, bundle: Bundle, most: int | None = None) -> None:
    """Run every batch size up to `most` once, so that no request pays for lazy allocation or kernel selection.

    What the engine refuses because of what is in the request is no fault of the engine.
    """
    usual = UsualRequests(bundle)
    for rows in bundle.manifest.batch_buckets(most):
        with suppress(InvalidInput):
            engine.infer(usual.of(rows))


def _constructor(kind: EngineKind) -> Callable[[EngineOptions], Engine]:
    if kind == "onnxruntime-cpu":
        from enginehouse.engines.onnxruntime import OnnxRuntimeCpu

        return OnnxRuntimeCpu
    if kind == "onnxruntime-cuda":
        from enginehouse.engines.onnxruntime import OnnxRuntimeCuda

        return OnnxRuntimeCuda
    if kind == "openvino-cpu":
        from enginehouse.engines.openvino import OpenVinoCpu

        return OpenVinoCpu
    if kind == "tensorrt":
        from enginehouse.engines.tensorrt import TensorRT

        return TensorRT
    raise ConfigError(f"engine {kind!r} is not known; the engines are {', '.join(ENGINE_KINDS)}")
