"""Trial runs in ONNX Runtime on made-up inputs: what a file answers, and whether a changed file answers the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx

from enginehouse.contract.errors import ExportFailed, ParityFailed
from enginehouse.contract.parity import LIMITS, compare
from enginehouse.contract.tensors import Tensors, TensorSpec
from enginehouse_build.reference.onnx import Run, plain_session, reason

#: Tried in turn for free dimensions: a short sequence, a small image that can be halved five times, a usual image.
SIZES = (8, 32, 224)
_SEED = 0


def load_proto(proto: onnx.ModelProto, folder: Path) -> Run:
    """`plain_session` for a model that is in no file yet; `folder` holds it meanwhile."""
    path = folder / "trial.onnx"
    onnx.save(proto, path)
    try:
        return plain_session(path)
    finally:
        path.unlink()


def attempt(run: Run, inputs: Tensors, what: str) -> dict[str, np.ndarray]:
    """What `run` answers. Raises ExportFailed with the runtime's reason."""
    try:
        return run(inputs)
    except Exception as error:
        raise ExportFailed(f"{what}: {reason(error)}") from error


def requests(inputs: Sequence[TensorSpec], rows: int, count: int) -> Iterator[list[Tensors]]:
    """For each of SIZES, `count` requests of `rows` rows; the same every time, and each on another scale.

    A fixed dim 0 keeps its length. The scale tells requests apart even where a model averages its input.
    """
    free = any(dim is None for spec in inputs for dim in spec.shape[1:])
    for size in SIZES if free else SIZES[:1]:
        yield [
            {spec.name: _made_up(spec, rows, size, np.random.default_rng((_SEED, at)), at) for spec in inputs}
            for at in range(count)
        ]


def answer(run: Run, inputs: Sequence[TensorSpec], rows: int, count: int) -> tuple[list[Tensors], list[Tensors]]:
    """The first of `requests` that `run` takes, and its answers. Raises ExportFailed when it takes none."""
    faults: list[Exception] = []
    for batch in requests(inputs, rows, count):
        try:
            return batch, [run(request) for request in batch]
        except Exception as error:
            faults.append(error)
    raise ExportFailed(f"it does not run on made-up inputs: {reason(faults[0])}")


def agree(got: Tensors, want: Tensors, what: str) -> None:
    """Raises ExportFailed saying how far `got` is from `want` when it is not the same to fp32."""
    try:
        figures = compare(got, want)
    except ParityFailed as error:
        raise ExportFailed(f"{what}: {error}") from None
    limit = LIMITS["fp32"].relative_l2
    if figures.relative_l2 > limit:
        raise ExportFailed(
            f"{what}: output {figures.output!r} differs by {figures.relative_l2:.2e} (relative L2, allowed {limit:.0e})"
        )


def joined(rows: Sequence[Tensors]) -> dict[str, np.ndarray]:
    """Requests or answers as one, along dim 0."""
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _made_up(spec: TensorSpec, rows: int, size: int, generator: np.random.Generator, at: int) -> np.ndarray:
    shape = [(rows if axis == 0 else size) if dim is None else dim for axis, dim in enumerate(spec.shape)]
    if spec.dtype.hasobject:
        return np.full(shape, f"text {at}", dtype=object)
    if spec.dtype.kind in "biu":
        # Small enough for any table that they may index, except bytes, which are pixels.
        return generator.integers(0, 256 if spec.dtype == np.uint8 else 2, shape).astype(spec.dtype)
    values: np.ndarray = (generator.standard_normal(shape) * (1 + at / 2) + at / 4).astype(spec.dtype)
    return values
