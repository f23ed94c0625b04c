"""Pre- and post-processing around a model: in its ONNX file, and around whatever else answers for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx as onnx_format

from enginehouse.contract.errors import BuildError
from enginehouse.contract.tensors import Signature, Tensors
from enginehouse_build.graph.pixels import Pixels
from enginehouse_build.inputs.postprocess import Postprocess
from enginehouse_build.inputs.preprocess import Preprocess
from enginehouse_build.inputs.samples import checked
from enginehouse_build.reference.onnx import finish

Run: TypeAlias = Callable[[Tensors], Mapping[str, np.ndarray]]


def wrap(
    path: Path, before: Preprocess | None, after: Postprocess | None, *, batched: bool
) -> tuple[Signature, Callable[[Run], Run], Pixels | None]:
    """Put pre- and post-processing into the file at `path`; the signature, and what puts them around a run."""
    model = onnx_format.load(path)
    pixels = before.fit(model) if before is not None else None
    if pixels is not None:
        model = pixels.attach(model)
    if after is not None:
        model = after.attach(model)

    def wrapped(run: Run) -> Run:
        if pixels is not None:
            run = _after_pixels(pixels.input, pixels.reference, run)
        return run if after is None else _then(run, after.reference)

    return finish(model, path, batched), wrapped, pixels


def fitting(
    samples: Mapping[str, np.ndarray], door: Signature, where: str, pixels: Pixels | None
) -> dict[str, np.ndarray]:
    """`samples` if they pass the `door`. Raises BuildError, with what pre-processing takes where it is pixels."""
    try:
        return checked(samples, door, where)
    except BuildError as error:
        hint = pixels.taken(samples.get(pixels.input)) if pixels is not None else ""
        raise BuildError(f"{error}{hint}") from None


def _after_pixels(name: str, reference: Callable[[np.ndarray], np.ndarray], run: Run) -> Run:
    return lambda inputs: run({**inputs, name: reference(inputs[name])})


def _then(run: Run, reference: Callable[[Tensors], dict[str, np.ndarray]]) -> Run:
    return lambda inputs: reference(run(inputs))
