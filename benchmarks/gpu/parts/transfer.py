"""How batches get to the GPU and back: IO binding, pinned buffers, CUDA graphs, several callers, and what overlaps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from benchmarks.gpu import models
from benchmarks.gpu.binding import Bound, Pinned, Plain
from benchmarks.gpu.lab import Lab, Row, tried
from benchmarks.gpu.sessions import session
from benchmarks.gpu.timing import in_turns
from enginehouse.contract.parity import LIMITS, compare
from enginehouse.contract.tensors import Tensors


def run(lab: Lab) -> Iterator[Row]:
    """A row for each way, model and number of rows; then callers at once; then copies beside computing."""
    for model in dict.fromkeys(("digits", lab.main)):
        for rows in lab.sized((1, 128), (1, 8)):
            request = models.request(model, rows)
            expected = Plain(_session(lab, model), request)()
            for way, make in _WAYS.items():
                row = {"model": model, "rows": rows, "way": way}
                yield tried(row, partial(_measured, make, lab, model, request, expected))
    for callers in (1, 2, 4):
        yield tried({"model": lab.main, "way": f"{callers} callers of one engine"}, partial(_callers, lab, callers))
    yield tried({"way": "copy beside computing"}, lambda: _overlap(lab))


def _session(lab: Lab, model: str, **options: str) -> Any:
    # A search for each session would take most of the part's time; `tuning` says what it is worth.
    settings = {"cudnn_conv_algo_search": "HEURISTIC", **options}
    return session(lab, models.onnx_file(lab, model, "fp16"), **settings)


def _plain(lab: Lab, model: str, request: Tensors, expected: Tensors) -> Plain:
    return Plain(_session(lab, model), request)


def _bound(lab: Lab, model: str, request: Tensors, expected: Tensors) -> Bound:
    return Bound(lab, _session(lab, model), request, expected)


def _stays(lab: Lab, model: str, request: Tensors, expected: Tensors) -> Bound:
    return Bound(lab, _session(lab, model), request, expected, stays=True)


def _graph(lab: Lab, model: str, request: Tensors, expected: Tensors) -> Bound:
    lab.need_gpu()
    return Bound(lab, _session(lab, model, enable_cuda_graph="1"), request, expected)


def _pinned(lab: Lab, model: str, request: Tensors, expected: Tensors) -> Pinned:
    lab.need_gpu()
    from enginehouse.engines.tensorrt.device import stream

    ours = stream()
    return Pinned(ours, _session(lab, model, user_compute_stream=str(int(ours))), request, expected)


Way = Callable[[Lab, str, Tensors, Tensors], Callable[[], Tensors]]
_WAYS: dict[str, Way] = {
    "arrays, as it serves": _plain,
    "IO binding": _bound,
    "IO binding, pinned": _pinned,
    "IO binding, CUDA graph": _graph,
    "IO binding, nothing copied": _stays,
}


def _measured(make: Way, lab: Lab, model: str, request: Tensors, expected: Tensors) -> Row:
    call = make(lab, model, request, expected)
    taken = in_turns({"": call}, lab.sized(0.4, 0.1))[""]
    answer = call.answers() if isinstance(call, Bound) else call()
    distance = compare(answer, expected).relative_l2
    if isinstance(call, Pinned):
        call.free()
    verdict = "right" if distance <= LIMITS["fp16"].relative_l2 else f"WRONG, relative L2 {distance:.1e}"
    return {"p50 ms": taken.p50_ms, "p99 ms": taken.p99_ms, "answers": verdict}


def _callers(lab: Lab, callers: int) -> Row:
    """Rows per second of so many threads that call one engine: what one copies while another computes is gained."""
    rows, seconds = lab.sized(32, 4), lab.sized(1.5, 0.3)
    engine, request = models.engine(lab, lab.main, "fp16"), models.request(lab.main, rows)
    together = threading.Barrier(callers)

    def work(_: int) -> int:
        engine.infer(request)
        together.wait(30)
        give_up, calls = time.perf_counter() + seconds, 0
        while time.perf_counter() < give_up:
            engine.infer(request)
            calls += 1
        return calls

    with ThreadPoolExecutor(callers) as pool:
        calls = sum(pool.map(work, range(callers)))
    engine.close()
    return {"rows": rows, "rows/s": calls * rows / seconds}


def _overlap(lab: Lab) -> Row:
    """Milliseconds of a pinned copy to the GPU, of products, and of both at once on streams of their own."""
    lab.need_gpu()
    import torch

    host = torch.from_numpy(np.zeros(1 << 26, np.uint8)).pin_memory()
    there = torch.empty(host.shape, dtype=host.dtype, device="cuda")
    left = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
    beside = torch.cuda.Stream()

    def copy() -> None:
        with torch.cuda.stream(beside):
            there.copy_(host, non_blocking=True)
        beside.synchronize()

    def compute() -> None:
        for _ in range(6):
            left @ left
        torch.cuda.current_stream().synchronize()

    def both() -> None:
        with torch.cuda.stream(beside):
            there.copy_(host, non_blocking=True)
        compute()
        beside.synchronize()

    times = in_turns({"copy": copy, "compute": compute, "both": both}, 0.4)
    copied, computed, together = (times[name].p50_ms for name in ("copy", "compute", "both"))
    hidden = (copied + computed - together) / min(copied, computed)
    return {"copy ms": copied, "compute ms": computed, "p50 ms": together, "overlap": hidden}
