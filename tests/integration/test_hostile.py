"""One client does its worst: it is refused by name, others get their answers, and the routers stay."""

from __future__ import annotations

import concurrent.futures
import gzip
import threading
import time

import httpx
import numpy as np
import psutil
import pytest
from tests.integration.bundles import WIDTH
from tests.integration.conftest import House
from tests.integration.load import body

JSON_LIMIT = 4 << 20
EMPTY = b'{"inputs": [' + b"{}," * (16 << 20) + b"{}]}"
PIXELS = b'{"inputs": [{"name": "x", "datatype": "UINT8", "shape": [1], "data": [' + b"7," * (32 << 20) + b"7]}]}"
NUMBERS = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 460000], "data": [%s]}]}'

#: Content, headers, status, and what the error names.
WORST: dict[str, tuple[bytes, dict[str, str], int, str]] = {
    "48 MiB of {} in 47 KiB": (
        gzip.compress(EMPTY),
        {"Content-Encoding": "gzip"},
        413,
        f"larger than {JSON_LIMIT} bytes when decompressed, the limit of JSON",
    ),
    "48 MiB of {} before binary data, in 47 KiB": (
        gzip.compress(EMPTY),
        {"Content-Encoding": "gzip", "Inference-Header-Content-Length": str(len(EMPTY))},
        413,
        f"JSON of {len(EMPTY)} bytes is larger than {JSON_LIMIT} bytes",
    ),
    "as many {} as a JSON may have bytes": (EMPTY[: JSON_LIMIT - 2] + b"]}", {}, 413, "arrays and objects, and 131072"),
    "64 MiB of pixels": (PIXELS, {}, 413, f"the body of {len(PIXELS)} bytes is larger than {JSON_LIMIT} bytes"),
    "64 MiB of pixels before binary data": (
        PIXELS + bytes(4),
        {"Inference-Header-Content-Length": str(len(PIXELS))},
        413,
        "set_data_from_numpy(array, binary_data=True)), or raise `--max-json-bytes`",
    ),
    "as many numbers as there may be": (NUMBERS % b",".join([b"0.123456"] * 460_000), {}, 400, "460000"),
    "a NaN behind many numbers": (NUMBERS % b",".join([b"0.123456"] * 459_999 + [b"NaN"]), {}, 413, "with NaN"),
}


@pytest.mark.parametrize("kind", WORST)
def test_the_worst_of_one_client_costs_no_other_its_answer_and_no_router_its_life(house: House, kind: str) -> None:
    content, headers, status, named = WORST[kind]
    url = f"http://{house.url}/v2/models/scale/infer"
    routers = house.cluster.replicas("Router")
    assert len(routers) == 2
    before = {pid: psutil.Process(pid).memory_info().rss for pid in routers}
    grown = [0]
    until = time.monotonic() + 2

    def attack() -> list[tuple[int, str]]:
        answers = []
        while not answers or time.monotonic() < until:
            answer = httpx.post(url, content=content, headers=headers, timeout=60)
            answers.append((answer.status_code, answer.json().get("error", "")))
        return answers

    def watch(stop: threading.Event) -> None:
        while not stop.wait(0.01):
            grown[0] = max(grown[0], *(psutil.Process(pid).memory_info().rss - rss for pid, rss in before.items()))

    stop = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(3) as clients:
        watching = clients.submit(watch, stop)
        attacks = [clients.submit(attack) for _ in range(2)]
        small = body(np.ones((1, WIDTH), np.float32))
        statuses = []
        while not all(attack.done() for attack in attacks):
            statuses.append(httpx.post(url, json=small, timeout=60).status_code)
        answers = [answer for attack in attacks for answer in attack.result()]
        stop.set()
        watching.result()
    assert answers and {code for code, _ in answers} == {status}, answers[0]
    assert all(named in error for _, error in answers), answers[0]
    assert len(statuses) > 3 and set(statuses) == {200}
    assert house.cluster.replicas("Router") == routers
    # Of its own limit, JSON becomes some 60 MiB at worst; 1.4 GiB came of 47 KiB without one.
    assert grown[0] < 256 << 20
    assert house.healthy()
