"""A long request of the last priority, as jobs send them, beside online ones: who comes later is answered first."""

from __future__ import annotations

import concurrent.futures
import time

import httpx
import numpy as np
from tests.integration.bundles import MAX_BATCH, WIDTH
from tests.integration.conftest import House
from tests.integration.load import body, value

from enginehouse.contract.config import LAST

#: In one call of the router, which pools compute at once if nobody else asks.
ROWS = 3 * MAX_BATCH
ONE_POOL = {"enginehouse-backend": "gpu-pool", "enginehouse-deadline-ms": "120000"}


def test_who_comes_later_is_answered_first_and_the_job_in_the_end(house: House) -> None:
    from enginehouse.faces.python.client import Client

    # Some 30 ms a call.
    house.publish("long", "1", 5, idles=3)
    house.add("long", "1")
    house.wait_live("long", "gpu-pool")
    client, x = Client(), np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)

    def online(x: np.ndarray) -> np.ndarray:
        url = f"http://{house.url}/v2/models/long/infer"
        answer = httpx.post(url, json=body(x), headers=ONE_POOL, timeout=120)
        assert answer.status_code == 200, answer.text
        return value(answer)

    online(x[:1])
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        # Its deadline is earlier, so by that it would go first.
        hints = {"priority": LAST, "deadline_s": 100.0, "backend": "gpu-pool"}
        job = threads.submit(client.infer, "long", {"x": x}, **hints)  # type: ignore[arg-type]
        time.sleep(0.1)
        np.testing.assert_array_equal(online(x[:1]), x[:1] * 5)
        assert not job.done()
        np.testing.assert_array_equal(job.result(100)["y"], x * 5)
    house.remove("long")
