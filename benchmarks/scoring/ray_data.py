"""The same with plain Ray Data: an actor pool of ONNX Runtime sessions under `map_batches`.

    python -m benchmarks.scoring.ray_data STORE MODEL INPUT OUTPUT --actors 2 --batch 4096

Ray is started for it with more logical CPUs than cores: with two, reading would have none while the actors hold them.
"""

from __future__ import annotations

import io
import json
import logging
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import ray
import typer

from benchmarks.scoring.by_hand import _session


class Predictor:
    """A session of one thread; calls of `batch` rows."""

    def __init__(self, store: str, model: str, batch: int, threads: int, decodes: bool) -> None:
        self._infer = _session(Path(store), model, threads)
        self._batch, self._decodes = batch, decodes

    def __call__(self, rows: pa.Table) -> pa.Table:
        if self._decodes:
            from PIL import Image

            files = rows.column("bytes").to_pylist()
            pixels = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
        else:
            # As numpy, nested lists are objects.
            pixels = rows.column("image").combine_chunks().flatten().flatten().to_numpy().reshape(-1, 8, 8)
        parts = [self._infer(pixels[at : at + self._batch]) for at in range(0, len(pixels), self._batch)]
        logits = np.concatenate(parts)
        column = pa.FixedSizeListArray.from_arrays(pa.array(logits.reshape(-1)), logits.shape[1])
        return pa.table({"id": rows.column("path" if self._decodes else "id"), "output.logits": column})


def main(
    store: Path,
    model: str,
    source: Path,
    target: Path,
    actors: Annotated[int, typer.Option(min=1)] = 2,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Rows of a call of the engine.")] = 256,
    rows: Annotated[int, typer.Option(min=1, help="Rows of a batch of Ray Data.")] = 4096,
    cpus: Annotated[int, typer.Option(min=2, help="Logical ones.")] = 4,
) -> None:
    """Score INPUT into OUTPUT; says the seconds of the job, without the start of Ray."""
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    began = time.perf_counter()
    if source.is_dir():
        data = ray.data.read_binary_files(str(source), include_paths=True)
    else:
        data = ray.data.read_parquet(str(source))
    found = data.map_batches(
        Predictor,
        fn_constructor_args=(str(store), model, batch, threads, source.is_dir()),
        batch_size=rows,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
    )
    found.write_parquet(str(target))
    print(json.dumps({"seconds": time.perf_counter() - began}))
    ray.shutdown()


if __name__ == "__main__":
    typer.run(main)
