"""Inference from another Ray job: needs only Ray and numpy, nothing of enginehouse.

    python examples/handle_client.py images.npy result.json

Finds the cluster as Ray does (RAY_ADDRESS, else one on this machine), sends every image of the file as a request of one
row, then all of them in requests of 32 rows, and writes predictions and timings.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import ray
from ray import serve

ROWS = 32


def main(images_file: str, result_file: str) -> None:
    ray.init("auto", log_to_driver=False, logging_level="ERROR")
    handle = serve.get_app_handle("enginehouse")
    images = np.load(images_file)

    def infer(rows: np.ndarray) -> np.ndarray:
        answer = handle.infer.remote("digits", {"image": rows}).result(timeout_s=30)
        logits: np.ndarray = answer["logits"]
        return logits.argmax(1)

    for _ in range(20):
        infer(images[:1])
    predictions, latencies = [], []
    for index in range(len(images)):
        started = time.perf_counter()
        predictions.append(int(infer(images[index : index + 1])[0]))
        latencies.append(time.perf_counter() - started)
    started = time.perf_counter()
    # Several calls under way at once; each is answered on its own.
    pending = [handle.infer.remote("digits", {"image": images[i : i + ROWS]}) for i in range(0, len(images), ROWS)]
    batched = np.concatenate([call.result(timeout_s=30)["logits"].argmax(1) for call in pending]).tolist()
    elapsed = time.perf_counter() - started
    origin = handle.answer.remote("digits", {"image": images[:1]}).result(timeout_s=30)
    with Path(result_file).open("w") as file:
        json.dump(
            {
                "predictions": predictions,
                "batched": batched,
                "latencies": latencies,
                "rows_per_s": len(images) / elapsed,
                "backend": origin["backend"],
            },
            file,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
