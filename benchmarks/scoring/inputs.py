"""What is scored: a model in a store, and files for it that are made from seeded pictures."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

ROOT = Path(__file__).parents[2]
SEED = 3
#: Rows of a row group of the digits: what one would choose for a table of a million rows.
GROUP = 16_384


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, what builds it, how its rows are written, and how many there are by default."""

    model: str
    source: str
    rows: int
    suffix: str

    def build(self, store: Path) -> None:
        """Have the bundle in `store`: fp32 for ONNX Runtime, so that it is clear what a loop by hand has to load."""
        if (store / self.model).is_dir():
            return
        command = [sys.executable, "-m", "enginehouse", "build", self.source, "--name", self.model]
        options = ["--store", str(store), "--formats", "onnx", "--precisions", "fp32"]
        subprocess.run([*command, *options], check=True, cwd=ROOT)

    def write(self, folder: Path, rows: int) -> Path:
        """INPUT with so many rows, made if it is not there yet."""
        made = folder / f"{self.model}-{rows}{self.suffix}"
        if not made.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _WRITERS[self.model](made, rows)
        return made


SUBJECTS = {
    "digits": Subject("digits", "examples.digits:digits", 1_000_000, ".parquet"),
    "pictures": Subject("pixels", "benchmarks.models:pixels", 2_000, ""),
}


def _digits(path: Path, rows: int) -> None:
    pixels = np.random.default_rng(SEED).integers(0, 17, (rows, 8, 8), dtype=np.uint8)
    column = pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), 8), 8)
    parquet.write_table(pa.table({"id": np.arange(rows), "image": column}), path, row_group_size=GROUP)


def _pictures(path: Path, rows: int) -> None:
    """JPEG files of 224 x 224 pixels: cuts of scikit-learn's photographs."""
    from examples.resnet import photographs
    from PIL import Image

    path.mkdir()
    for first in range(0, rows, 100):
        for at, pixels in enumerate(photographs(min(100, rows - first), SEED + first)):
            Image.fromarray(pixels).save(path / f"{first + at:05d}.jpg", quality=90)


_WRITERS = {"digits": _digits, "pixels": _pictures}
