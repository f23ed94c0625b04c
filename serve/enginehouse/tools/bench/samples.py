"""The inputs that are sent: the user's own rows, or random ones that fit the signature."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from enginehouse.contract.errors import InvalidInput
from enginehouse.contract.magic import seen_in
from enginehouse.contract.manifest import Manifest
from enginehouse.contract.tensors import Tensors

SYNTHETIC_ROWS = 64
_SEED = 0


@dataclass(frozen=True, slots=True)
class Samples:
    """Rows by input name; without a batch the arrays are one request as they are. `name` is empty for random ones."""

    arrays: dict[str, np.ndarray]
    batched: bool
    name: str

    @property
    def rows(self) -> int:
        """How many different rows there are."""
        return len(next(iter(self.arrays.values()))) if self.batched else 1

    def request(self, start: int, rows: int) -> Tensors:
        """`rows` rows from `start` on, beginning again at row 0 after the last one."""
        if not self.batched:
            return self.arrays
        chosen = np.arange(start, start + rows) % self.rows
        return {name: np.take(array, chosen, axis=0) for name, array in self.arrays.items()}


def read(path: Path, manifest: Manifest) -> Samples:
    """The arrays of an .npz file, checked against the model's signature. Raises InvalidInput."""
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise InvalidInput(f"{path}: one array without a name; save it with np.savez(path, INPUT=array)")
        with archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise InvalidInput(f"{path}: not a readable .npz of plain arrays: {seen_in(path, error)}") from None
    signature = manifest.request_signature()
    try:
        signature.check(arrays)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None
    return Samples(arrays, signature.batched, path.name)


def synthetic(manifest: Manifest) -> Samples:
    """Standard normal floats, bytes over their range, 0 and 1 for other whole numbers, empty text; axes at `opt`."""
    generator = np.random.default_rng(_SEED)
    zeros = manifest.example(SYNTHETIC_ROWS)
    arrays = {name: _random(array, generator) for name, array in zeros.items()}
    return Samples(arrays, manifest.signature.batched, name="")


def _random(array: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    if array.dtype.hasobject:
        return array
    if array.dtype.kind == "b":
        return generator.integers(0, 2, array.shape).astype(np.bool_)
    if array.dtype.kind in "iu":
        return generator.integers(0, 256 if array.dtype == np.uint8 else 2, array.shape).astype(array.dtype)
    return generator.standard_normal(array.shape, np.float32).astype(array.dtype)
