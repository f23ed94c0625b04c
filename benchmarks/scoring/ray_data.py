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
from typing import Annotated, Any

import numpy as np
import ray
import typer

from benchmarks.scoring.by_hand import _session


class Predictor:
    """A session of one thread; calls of `batch` rows."""

    def __init__(self, store: str, model: str, batch: int, threads: int, decodes: bool) -> None:
        self._infer = _session(Path(store), model, threads)
        self._batch, self._decodes = batch, decodes

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        if self._decodes:
            from PIL import Image

            pixels = np.stack([np.asarray(Image.open(io.BytesIO(one)).convert("RGB")) for one in rows["bytes"]])
            ids = rows["path"]
        else:
            pixels, ids = rows["image"].reshape(-1, 8, 8), rows["id"]
        parts = [self._infer(pixels[at : at + self._batch]) for at in range(0, len(pixels), self._batch)]
        return {"id": ids, "output.logits": np.concatenate(parts)}


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
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
    )
    found.write_parquet(str(target))
    print(json.dumps({"seconds": time.perf_counter() - began}))
    ray.shutdown()


if __name__ == "__main__":
    typer.run(main)
