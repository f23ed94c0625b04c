"""Trial runs in ONNX Runtime on made-up inputs: what a file answers, and whether a changed file answers the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx

from enginehouse.contract.errors import ExportFailed
from enginehouse.contract.parity import LIMITS, first_difference
from enginehouse.contract.tensors import Tensors, TensorSpec
from enginehouse_build.reference.onnx import Run, plain_session, reason

#: Tried in turn for free dimensions: a short sequence, one that is not even, an image that can be halved five times,
#: one that cannot, a usual image.
SIZES = (8, 11, 32, 45, 224)
#: A rewritten model is held against the original at so many of them: sizes that divide evenly hide what others show.
SIZES_COMPARED = 2
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


def answers(
    run: Run, inputs: Sequence[TensorSpec], rows: int, count: int
) -> Iterator[tuple[list[Tensors], list[Tensors]]]:
    """The first of `requests` that `run` takes, up to SIZES_COMPARED of them, with its answers.

    Raises ExportFailed when it takes none.
    """
    faults: list[Exception] = []
    found = 0
    for batch in requests(inputs, rows, count):
        try:
            answered = [run(request) for request in batch]
        except Exception as error:
            faults.append(error)
            continue
        yield batch, list(answered)
        found += 1
        if found == SIZES_COMPARED:
            return
    if not found:
        raise ExportFailed(f"it does not run on made-up inputs: {reason(faults[0])}")


def answer(run: Run, inputs: Sequence[TensorSpec], rows: int, count: int) -> tuple[list[Tensors], list[Tensors]]:
    """The first of `answers`. Raises ExportFailed as it does."""
    return next(answers(run, inputs, rows, count))


def agree(got: Tensors, want: Tensors, what: str) -> None:
    """Raises ExportFailed saying where `got` is not the same answer as `want`, to fp32; see `first_difference`."""
    limit = LIMITS["fp32"].relative_l2
    if fault := first_difference(got, want, limit, limit):
        raise ExportFailed(f"{what}: {fault}")


def _made_up(spec: TensorSpec, rows: int, size: int, generator: np.random.Generator, at: int) -> np.ndarray:
    shape = [(rows if axis == 0 else size) if dim is None else dim for axis, dim in enumerate(spec.shape)]
    if spec.dtype.hasobject:
        return np.full(shape, f"text {at}", dtype=object)
    if spec.dtype.kind in "biu":
        # Small enough for any table that they may index, except bytes, which are pixels.
        return generator.integers(0, 256 if spec.dtype == np.uint8 else 2, shape).astype(spec.dtype)
    values: np.ndarray = (generator.standard_normal(shape) * (1 + at / 2) + at / 4).astype(spec.dtype)
    return values
