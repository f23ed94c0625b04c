"""Trial runs in ONNX Runtime on made-up inputs: what a file answers, and whether a changed file answers the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx

from enginehouse.contract.errors import ExportFailed
from enginehouse.contract.parity import LIMITS, WHOLE, first_difference
from enginehouse.contract.tensors import Tensors, TensorSpec
from enginehouse_build.reference.onnx import Run, plain_session, reason

#: Tried in turn for free dimensions: a short sequence, one that is not even, an image that can be halved five times,
#: one that cannot, a usual image.
SIZES = (8, 11, 32, 45, 224)
#: A rewritten model is held against the original at so many of them: sizes that divide evenly hide what others show.
SIZES_COMPARED = 2
_SEED = 0
#: The magnitude of large made-up numbers.
_LARGE = 1000.0


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


def requests(inputs: Sequence[TensorSpec], rows: int, count: int) -> Iterator[tuple[list[Tensors], list[Tensors]]]:
    """For each of SIZES, `count` requests of `rows` rows, and as many milder ones in the place of those that are not
    taken; the same every time, and each on another scale: of the normal distribution, of a share, of pixels, large.

    A fixed dim 0 keeps its length. The scale tells requests apart even where a model averages its input.
    """
    free = any(dim is None for spec in inputs for dim in spec.shape[1:])
    for size in SIZES if free else SIZES[:1]:
        yield _of_size(inputs, rows, size, count, _SCALES), _of_size(inputs, rows, size, count, (_mild,))


def _of_size(inputs: Sequence[TensorSpec], rows: int, size: int, count: int, scales: Sequence[_Scale]) -> list[Tensors]:
    return [
        {spec.name: _made_up(spec, rows, size, np.random.default_rng((_SEED, at)), at, scales) for spec in inputs}
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
    for scaled, mild in requests(inputs, rows, count):
        try:
            taken = [_taken(run, *pair) for pair in zip(scaled, mild, strict=True)]
        except Exception as error:
            faults.append(error)
            continue
        yield [request for request, _ in taken], [answered for _, answered in taken]
        found += 1
        if found == SIZES_COMPARED:
            return
    if not found:
        raise ExportFailed(f"it does not run on made-up inputs: {reason(faults[0])}")


def _taken(run: Run, scaled: Tensors, mild: Tensors) -> tuple[Tensors, Tensors]:
    """The request that is asked, and its answer: a model that overflows was not made for that scale."""
    try:
        answered = run(scaled)
    except Exception:
        return mild, run(mild)
    if _finite(answered) or not _finite(other := run(mild)):
        return scaled, answered
    return mild, other


def _finite(answered: Tensors) -> bool:
    return all(np.isfinite(array).all() for array in answered.values() if array.dtype.kind == "f")


def answer(run: Run, inputs: Sequence[TensorSpec], rows: int, count: int) -> tuple[list[Tensors], list[Tensors]]:
    """The first of `answers`. Raises ExportFailed as it does."""
    return next(answers(run, inputs, rows, count))


def agree(got: Tensors, want: Tensors, what: str) -> None:
    """Raises ExportFailed saying where `got` is not the same answer as `want`, to fp32; see `first_difference`."""
    limit = LIMITS["fp32"].relative_l2
    if fault := first_difference(got, want, limit, limit):
        raise ExportFailed(f"{what}: {fault}")


def unvaried(answered: Sequence[Tensors]) -> list[str]:
    """The outputs of whole numbers, truth values or text that are one value in all of the answers: no evidence."""
    return [
        name
        for name, array in (answered[0] if answered else {}).items()
        if array.dtype.kind in WHOLE and len({item for each in answered for item in each[name].ravel().tolist()}) < 2
    ]


def _mild(generator: np.random.Generator, shape: Sequence[int], at: int) -> np.ndarray:
    return generator.standard_normal(shape) * (1 + at / 2) + at / 4


_Scale = Callable[[np.random.Generator, Sequence[int], int], np.ndarray]
#: What floats are made of, in turn: what networks are trained on, shares, pixels, and large numbers.
_SCALES: tuple[_Scale, ...] = (
    _mild,
    lambda generator, shape, at: generator.uniform(0, 1, shape),
    lambda generator, shape, at: generator.uniform(0, 255, shape),
    _mild,
    lambda generator, shape, at: generator.standard_normal(shape) * _LARGE,
)


def _made_up(
    spec: TensorSpec, rows: int, size: int, generator: np.random.Generator, at: int, scales: Sequence[_Scale]
) -> np.ndarray:
    shape = [(rows if axis == 0 else size) if dim is None else dim for axis, dim in enumerate(spec.shape)]
    if spec.dtype.hasobject:
        return np.full(shape, f"text {at}", dtype=object)
    if spec.dtype.kind in "biu":
        # Small enough for any table that they may index, except bytes, which are pixels.
        return generator.integers(0, 256 if spec.dtype == np.uint8 else 2, shape).astype(spec.dtype)
    return scales[at % len(scales)](generator, shape, at).astype(spec.dtype)
