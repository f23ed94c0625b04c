"""The protocol's statistics of a model version, as Triton answers them: what perf_analyzer reads of the server."""

from __future__ import annotations

from typing import Any

from enginehouse.counts.rows import NOTHING, WIDTH, Batches, Requests, Rows


def model_statistics(model: str, version: str, rows: Rows) -> dict[str, Any]:
    """An entry of `model_stats`. Nothing is cached here, and no model answers a request more than once."""
    counted = rows.get(("requests", model, version), NOTHING)
    success = counted[Requests.SUCCESS]
    failed = sum(counted[reason] for reason in (Requests.REJECTED, Requests.CANCELED, Requests.BACKEND, Requests.OTHER))
    batches = batches_by_rows(model, version, rows)
    return {
        "name": model,
        "version": version,
        "last_inference": counted[Requests.LAST_MS],
        "inference_count": counted[Requests.ROWS],
        "execution_count": sum(batch[Batches.COUNT] for batch in batches.values()),
        "inference_stats": {
            "success": _duration(success, counted[Requests.SUCCESS_NS]),
            "fail": _duration(failed, counted[Requests.FAIL_NS]),
            "queue": _duration(success, counted[Requests.QUEUE_NS]),
            "compute_input": _duration(success, counted[Requests.INPUT_NS]),
            "compute_infer": _duration(success, counted[Requests.INFER_NS]),
            "compute_output": _duration(success, counted[Requests.OUTPUT_NS]),
            "cache_hit": _duration(0, 0),
            "cache_miss": _duration(0, 0),
        },
        "response_stats": {},
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": _duration(batch[Batches.COUNT], batch[Batches.INPUT_NS]),
                "compute_infer": _duration(batch[Batches.COUNT], batch[Batches.INFER_NS]),
                "compute_output": _duration(batch[Batches.COUNT], batch[Batches.OUTPUT_NS]),
            }
            for size, batch in sorted(batches.items())
        ],
        "memory_usage": [],
    }


def batches_by_rows(model: str, version: str, rows: Rows) -> dict[int, list[int]]:
    """The rows of `batches` of a model version in all pools, by the rows of a call."""
    found: dict[int, list[int]] = {}
    for key, values in rows.items():
        if key[:3] == ("batches", model, version):
            before = found.setdefault(int(key[4]), [0] * WIDTH)
            for place, value in enumerate(values):
                before[place] += value
    return found


def _duration(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}
