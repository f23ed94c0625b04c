"""Batch size and wait, changed on the running application, reach the replicas without a restart."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from tests.integration.bundles import WIDTH
from tests.integration.cluster import wait_for
from tests.integration.conftest import House
from tests.integration.load import body, value

WAIT_MS = 1500


@pytest.fixture
def restored(house: House) -> Iterator[House]:
    yield house
    house.add("scale", "1")


def queue_ms(house: House, requests: int) -> list[float]:
    """How long each of so many requests, sent at once, waited for its batch."""

    def send(number: int) -> float:
        x = np.full((1, WIDTH), number, np.float32)
        answer = httpx.post(f"http://{house.url}/v2/models/scale/infer", json=body(x), timeout=20)
        assert answer.status_code == 200, answer.text
        np.testing.assert_array_equal(value(answer), x * 2)
        return float(answer.headers["enginehouse-queue-ms"])

    with concurrent.futures.ThreadPoolExecutor(requests) as callers:
        return list(callers.map(send, range(requests)))


def test_batch_size_and_wait_change_live(restored: House) -> None:
    house = restored
    before = {name: house.cluster.replicas(name) for name in ("Router", "gpu-pool", "cpu-pool")}
    assert max(queue_ms(house, 1)) < WAIT_MS / 2
    house.add("scale", "1", max_batch_size=3, batch_wait_ms=WAIT_MS)
    # One request alone now waits for two more that never come ...
    wait_for(lambda: queue_ms(house, 1)[0] >= WAIT_MS * 0.9, 20, "a lone request waits")
    # ... two as well, and the third one sends them off.
    assert min(queue_ms(house, 2)) > WAIT_MS / 2
    began = time.monotonic()
    assert max(queue_ms(house, 3)) < WAIT_MS / 2
    assert time.monotonic() - began < WAIT_MS / 1e3
    house.add("scale", "1", max_batch_size=1, batch_wait_ms=WAIT_MS)
    wait_for(lambda: queue_ms(house, 1)[0] < WAIT_MS / 2, 20, "a batch of one is full at once")
    assert {name: house.cluster.replicas(name) for name in before} == before
