"""Loops as one would write them for one job: read, compute, write; nothing is resumed, checked or put apart.

    python -m benchmarks.scoring.by_hand STORE MODEL INPUT OUTPUT --lanes 2 --threads 1 --batch 256

`--lanes` threads take pieces of INPUT from one stream, so that one reads or writes while another computes; each calls
an engine of `--threads` threads, which is loaded as a pool would load it, or with `--bare` is ONNX Runtime's session.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import typer
from pyarrow import parquet

Infer = Callable[[np.ndarray], np.ndarray]
#: Pictures of a piece.
PICTURES = 64


def main(
    store: Path,
    model: str,
    source: Path,
    target: Path,
    lanes: Annotated[int, typer.Option(min=1)] = 2,
    threads: Annotated[int, typer.Option(min=1, help="Of each lane's engine.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Rows of a call.")] = 256,
    bare: Annotated[bool, typer.Option(help="ONNX Runtime without anything of enginehouse.")] = False,
) -> None:
    """Score INPUT into OUTPUT; says the seconds between the first byte read and the last one written."""
    target.mkdir(parents=True)
    pieces = list(_pictures(source) if source.is_dir() else _groups(source))
    with ThreadPoolExecutor(lanes) as pool:
        load = _session if bare else _engine
        engines = list(pool.map(lambda _: load(store, model, threads), range(lanes)))
        began = time.perf_counter()

        def take(lane: int) -> int:
            rows = 0
            while True:
                try:
                    number, read = pieces.pop(0)
                except IndexError:
                    return rows
                ids, pixels = read()
                answers = [engines[lane](pixels[at : at + batch]) for at in range(0, len(pixels), batch)]
                logits = np.concatenate(answers)
                column = pa.FixedSizeListArray.from_arrays(pa.array(logits.reshape(-1)), logits.shape[1])
                parquet.write_table(pa.table({"id": ids, "output.logits": column}), target / f"{number:06d}.parquet")
                rows += len(logits)

        rows = sum(pool.map(take, range(lanes)))
        print(json.dumps({"rows": rows, "seconds": time.perf_counter() - began}))


Read = Callable[[], tuple[object, np.ndarray]]


def _groups(source: Path) -> Iterator[tuple[int, Read]]:
    def reading(group: int) -> Read:
        def read() -> tuple[object, np.ndarray]:
            table = parquet.ParquetFile(source).read_row_group(group, use_threads=False)
            pixels = table.column("image").combine_chunks().flatten().flatten().to_numpy()
            return table.column("id"), pixels.reshape(-1, 8, 8)

        return read

    for group in range(parquet.ParquetFile(source).num_row_groups):
        yield group, reading(group)


def _pictures(source: Path) -> Iterator[tuple[int, Read]]:
    from PIL import Image

    paths = sorted(source.iterdir())

    def reading(own: list[Path]) -> Read:
        def read() -> tuple[object, np.ndarray]:
            pixels = [np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB")) for path in own]
            return [str(path) for path in own], np.stack(pixels)

        return read

    for at in range(0, len(paths), PICTURES):
        yield at, reading(paths[at : at + PICTURES])


def _engine(store: Path, model: str, threads: int) -> Infer:
    from enginehouse.contract.store import Store
    from enginehouse.engines import load_engine

    place = Store(str(store))
    version = place.latest(model)
    manifest = place.manifest(model, version)
    artifact = manifest.artifact("onnx-fp32")
    engine = load_engine("onnxruntime-cpu", place.open(model, version, ["onnx-fp32"]), artifact, threads=threads)
    name = engine.signature.inputs[0].name
    return lambda pixels: engine.infer({name: pixels})["logits"]


def _session(store: Path, model: str, threads: int) -> Infer:
    import onnxruntime

    (path,) = (store / model).glob("*/onnx-fp32/*.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels: session.run(["logits"], {name: pixels})[0]


if __name__ == "__main__":
    typer.run(main)
