"""Load: callers that send one request after the other and check the value of every answer."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import httpx
import numpy as np
from tests.integration.bundles import WIDTH

#: Between two requests of one caller: two cores also have to run the cluster.
PAUSE_S = 0.02
#: Answers one request: x -> (y, who answered).
Call = Callable[[np.ndarray], tuple[np.ndarray, str]]


@dataclass
class Report:
    """What became of every request."""

    name: str
    latencies: list[tuple[float, float]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    factors: Counter[float] = field(default_factory=Counter)
    backends: Counter[str] = field(default_factory=Counter)

    @property
    def sent(self) -> int:
        return len(self.latencies)

    def worst_ms(self, since: float = 0.0, until: float = float("inf")) -> float:
        """Longest of the requests that were under way between two times of `time.monotonic()`."""
        return max(
            (taken * 1e3 for began, taken in self.latencies if began + taken >= since and began <= until), default=0.0
        )

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.sent} requests, {len(self.problems)} lost or wrong, worst {self.worst_ms():.0f} ms, "
            f"by {dict(self.backends)}"
        )


@contextlib.contextmanager
def load(
    name: str, call: Callable[[], Call], factors: Collection[float], callers: int = 2, pause_s: float = PAUSE_S
) -> Iterator[Report]:
    """Keep `callers` busy while the context lasts; each answer must be its input times one of `factors`."""
    report, stop, lock = Report(name), threading.Event(), threading.Lock()

    def work(seed: int) -> None:
        rng, send = np.random.default_rng(seed), call()
        while not stop.is_set():
            x = rng.standard_normal((1 + seed % 3, WIDTH), dtype=np.float32)
            began = time.monotonic()
            try:
                y, backend = send(x)
                factor = next((one for one in factors if np.array_equal(y, x * np.float32(one))), None)
                problem = None if factor is not None else f"wrong: {x.tolist()} gave {y.tolist()}"
            except Exception as error:
                problem, factor, backend = f"{type(error).__name__}: {error}", None, "none"
            with lock:
                report.latencies.append((began, time.monotonic() - began))
                report.backends[backend] += 1
                if factor is not None:
                    report.factors[factor] += 1
                if problem is not None:
                    report.problems.append(problem)
            time.sleep(pause_s)

    threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield report
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
        print(report)
    assert not any(thread.is_alive() for thread in threads), f"{name}: a request hangs"


def by_http(url: str, model: str, backend: str | None = None, deadline_ms: float | None = None) -> Callable[[], Call]:
    """Callers over HTTP, each with a connection of its own, of any backend or one."""
    headers = {"enginehouse-backend": backend} if backend else {}
    if deadline_ms is not None:
        headers["enginehouse-deadline-ms"] = f"{deadline_ms:g}"

    def caller() -> Call:
        client = httpx.Client(base_url=f"http://{url}", timeout=45, headers=headers)

        def send(x: np.ndarray) -> tuple[np.ndarray, str]:
            answer = client.post(f"/v2/models/{model}/infer", json=body(x))
            if answer.status_code != 200:
                raise RuntimeError(f"{answer.status_code} {answer.text}")
            return value(answer), answer.headers["enginehouse-backend"]

        return send

    return caller


def body(x: np.ndarray) -> dict[str, object]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}]}


def value(answer: httpx.Response) -> np.ndarray:
    (output,) = answer.json()["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def by_handle(model: str, is_embedded: bool = True) -> Callable[[], Call]:
    """Callers through the Python client, from this process: routed here, or by the deployed routers."""

    def caller() -> Call:
        from enginehouse.faces.python.client import Client

        client = Client(is_embedded)

        def send(x: np.ndarray) -> tuple[np.ndarray, str]:
            answer = client.answer(model, {"x": x})
            return answer["outputs"]["y"], answer["backend"]

        return send

    return caller
