"""What settings of the CUDA provider are worth: how long the first batch takes, and all that follow."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import partial

from benchmarks.gpu import models
from benchmarks.gpu.binding import Plain
from benchmarks.gpu.lab import Lab, Row, tried
from benchmarks.gpu.sessions import session
from benchmarks.gpu.timing import in_turns

#: Only the first of them is a setting of the CPU's too: none.
_SETTINGS: tuple[Mapping[str, str], ...] = (
    {},
    {"cudnn_conv_algo_search": "HEURISTIC"},
    {"cudnn_conv_algo_search": "DEFAULT"},
    {"cudnn_conv_use_max_workspace": "0"},
    {"prefer_nhwc": "1"},
    {"prefer_nhwc": "1", "cudnn_conv_algo_search": "HEURISTIC"},
)


def run(lab: Lab) -> Iterator[Row]:
    """A row for each precision, setting and number of rows."""
    for precision in ("fp16", "fp32"):
        for settings in _SETTINGS:
            called = ", ".join(f"{name}={value}" for name, value in settings.items()) or "as they are"
            row = {"model": lab.main, "precision": precision, "settings": called}
            yield tried(row, partial(_measured, lab, precision, settings))


def _measured(lab: Lab, precision: str, settings: Mapping[str, str]) -> Row:
    if settings:
        lab.need_gpu()
    began = time.perf_counter()
    opened = session(lab, models.onnx_file(lab, lab.main, precision), **{"use_tf32": "0", **settings})
    found: Row = {"load s": time.perf_counter() - began}
    for rows in lab.sized((1, 128), (1, 8)):
        call = Plain(opened, models.request(lab.main, rows))
        began = time.perf_counter()
        call()
        found[f"first {rows} ms"] = (time.perf_counter() - began) * 1e3
        found[f"{rows} rows, p50 ms"] = in_turns({"": call}, lab.sized(0.5, 0.1))[""].p50_ms
    return found
