"""The user's samples: read from files or made up, cut and repeated to the requests that artifacts are asked with."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from enginehouse.contract.errors import BuildError, InvalidInput
from enginehouse.contract.magic import seen_in
from enginehouse.contract.manifest import Axis
from enginehouse.contract.tensors import Domain, Signature, Tensors, TensorSpec
from enginehouse_build.inputs.extents import independent, resized, sizes

SEED = 0
RANDOM_ROWS = 64
#: Rows of real data that parity compares, spread evenly over all: more cost time on slow engines and find nothing new.
ROWS_COMPARED = 256
#: Rows that int8 ranges are taken from, spread evenly (NNCF's default is 300).
ROWS_CALIBRATED = 300


def spread(samples: Tensors, most: int) -> dict[str, np.ndarray]:
    """At most `most` rows of the samples, evenly spread: data is often sorted, and its first rows are of one kind."""
    count = min(len(array) for array in samples.values())
    if count <= most:
        return dict(samples)
    rows = np.linspace(0, count - 1, most).round().astype(np.int64)
    return {name: array[rows] for name, array in samples.items()}


def take(samples: Tensors, start: int, rows: int) -> dict[str, np.ndarray]:
    """`rows` rows of every sample array from `start` on, beginning again at row 0 after the last one."""
    return {
        name: np.take(array, np.arange(start, start + rows) % len(array), axis=0) for name, array in samples.items()
    }


def requests(
    samples: Tensors, signature: Signature, max_rows: int, axes: Sequence[Axis]
) -> list[dict[str, np.ndarray]]:
    """What artifacts are compared on: 1 row, 2 rows, the samples in batches of `max_rows`, then other extents.

    Without a batch the samples are one request.
    """
    if signature.batched:
        compared = _dealt(spread(samples, max(max_rows, ROWS_COMPARED)), max_rows)
        found = min(len(array) for array in compared.values())
        asked = [take(samples, 0, rows) for rows in sorted({1, min(2, max_rows)})]
        asked += [take(compared, at, max_rows) for at in range(0, found, max_rows)]
    else:
        asked = [dict(samples)]
    few = take(samples, 0, min(2, max_rows)) if signature.batched else samples
    return asked + [resized(few, axis, size, axes) for axis in independent(axes) for size in sizes(axis)]


def _dealt(samples: Tensors, size: int) -> dict[str, np.ndarray]:
    """The same rows, dealt out so that each batch of `size` has some of everywhere: some are looked at alone."""
    count = min(len(array) for array in samples.values())
    batches = -(-count // size)
    order = np.concatenate([np.arange(at, count, batches) for at in range(batches)])
    return {name: array[order] for name, array in samples.items()}


def calibration(samples: Tensors, signature: Signature, max_rows: int) -> list[dict[str, np.ndarray]]:
    """Requests of a few rows each, for the ranges of int8."""
    if not signature.batched:
        return [dict(samples)]
    samples = spread(samples, ROWS_CALIBRATED)
    found = min(len(array) for array in samples.values())
    # Quantizers keep every activation of a request in memory: 10 rows of ResNet-50 took 2.7 GiB.
    step = min(max_rows, 5)
    return [take(samples, at, min(step, found - at)) for at in range(0, found, step)]


def read_samples(path: Path, what: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file. Raises BuildError beginning with `what`."""
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise BuildError(f"{what} {path}: one array without a name; save it with np.savez(path, INPUT=array)")
        with archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        kind = "plain arrays (text of dtype U, not object)"
        raise BuildError(f"{what} {path}: not a readable .npz of {kind}: {seen_in(path, error)}") from None


def read_labels(path: Path) -> np.ndarray:
    """The array of an .npy file. Raises BuildError."""
    try:
        labels = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise BuildError(f"--labels {path}: not a readable .npy of plain numbers: {seen_in(path, error)}") from None
    if not isinstance(labels, np.ndarray):
        raise BuildError(f"--labels {path}: several arrays; give an .npy file with one")
    return labels


def checked(samples: Mapping[str, np.ndarray], signature: Signature, what: str) -> dict[str, np.ndarray]:
    """`samples` if they fit the signature, text as requests have it. Raises BuildError beginning with `what`."""
    try:
        without_domains(signature).check(samples)
    except InvalidInput as error:
        raise BuildError(f"{what}: {error}") from None
    for spec in signature.inputs:
        if spec.domain is not None:
            _check_domain(spec.name, spec.domain, samples[spec.name], signature.batched, what)
    return {name: array.astype(object) if array.dtype.kind in "SU" else array for name, array in samples.items()}


def without_domains(signature: Signature) -> Signature:
    """`signature` with inputs that may hold any whole number."""
    return replace(signature, inputs=tuple(replace(spec, domain=None) for spec in signature.inputs))


def _check_domain(name: str, domain: Domain, array: np.ndarray, batched: bool, what: str) -> None:
    """Raises BuildError with the first value outside, its sample, and how many other samples have one."""
    places = np.argwhere((array < domain.low) | (array >= domain.high))
    if not len(places):
        return
    row, *place = first = tuple(places[0].tolist())
    others = len(set(places[:, 0].tolist())) - 1 if batched else 0
    sample, at = (f"in sample {row} ", place) if batched else ("", list(first))
    as_well = f", {others} other samples have such values too" if others else ""
    raise BuildError(
        f"{what}: {sample}input {name!r} has the value {array[first]} at {at}; the model takes {domain}{as_well}"
    )


def made_up(signature: Signature, axes: Sequence[Axis]) -> dict[str, np.ndarray]:
    """Standard normal floats, bytes over their range, 0 and 1 for other whole numbers: values most models accept.

    Free dimensions have the `opt` of their axis. Raises BuildError for text and for dimensions without an axis.
    """
    generator = np.random.default_rng(SEED)
    extents = {dim: axis.opt for axis in axes for dim in axis.dims}
    return {spec.name: _made_up(spec, signature.batched, extents, generator) for spec in signature.inputs}


def _made_up(
    spec: TensorSpec, batched: bool, extents: Mapping[tuple[str, int], int], generator: np.random.Generator
) -> np.ndarray:
    shape = []
    for axis, dim in enumerate(spec.shape):
        if dim is not None:
            shape.append(dim)
        elif batched and axis == 0:
            shape.append(RANDOM_ROWS)
        elif (spec.name, axis) in extents:
            shape.append(extents[spec.name, axis])
        else:
            raise BuildError(
                f"input {spec.name!r} has a free dimension {axis}, which cannot be guessed; "
                "give its range with --axis NAME=MIN:OPT:MAX or real data with --samples FILE.npz"
            )
    if spec.dtype.hasobject:
        raise BuildError(f"input {spec.name!r} holds text, which cannot be guessed; give --samples FILE.npz")
    if spec.dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(np.bool_)
    if spec.dtype.kind in "iu":
        high = 256 if spec.dtype == np.uint8 else 2
        high = min(high, spec.domain.high) if spec.domain else high
        return generator.integers(0, high, shape).astype(spec.dtype)
    return generator.standard_normal(shape).astype(spec.dtype)
