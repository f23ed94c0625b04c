"""A load that rises to four times what it was, and falls again: how many replicas there are meanwhile."""

from __future__ import annotations

import math
import statistics
import time
from itertools import pairwise

from ray import serve
from tests.integration.cluster import wait_for
from tests.integration.conftest import deploy_app

from benchmarks.faults import model
from benchmarks.faults.house import APP, House
from benchmarks.faults.rows import Outcome
from benchmarks.faults.traffic import Kind, traffic
from enginehouse.cluster import deploy
from enginehouse.contract.config import APP_NAME, AppConfig

#: Seconds of an engine a second that a replica is to have: so little that two cores hold four.
TARGET = 0.2
POOL = "cpu-pool"
ELASTIC = AppConfig(
    pools={POOL: APP.pools[POOL].model_copy(update={"max_replicas": 4, "target_busy": TARGET, "downscale_delay_s": 4})},
    router=APP.router,
)
#: What is asked for, in replicas, and for how many seconds.
STEPS = (0.7, 20), (2.8, 35), (0.7, 35)
#: Rows of one request after the other.
ROWS = (1, 4, 2, 1)
#: By when there have to be as many as are needed, but for one.
IN_TIME_S = 30.0


def load_step(house: House) -> Outcome:
    """One replica's worth of requests, four times that, and one again; each row of some 15 ms."""
    request_s = statistics.mean(ROWS) / house.capacity_of_one
    _redeploy(house, ELASTIC, POOL)
    failed, requests, fits, seen = 0, 0, [], []
    try:
        for replicas, seconds in STEPS:
            with traffic([house.url], replicas * TARGET / request_s, [(Kind(rows=ROWS), 1)]) as report:
                counts = _watch(seconds)
            failed, requests = failed + len(report.failed()), requests + len(report.sent)
            fits.append(_fits_after(counts, math.ceil(replicas)))
            seen.append([count for _, count in counts])
    finally:
        _redeploy(house, APP, *APP.pools)
    return Outcome(
        "step",
        "load step x4 and back, 1 to 4 rows a request: within 1 of the need in 30 s, no oscillation, none failed",
        not failed and all(after < IN_TIME_S for after in fits) and all(_turns(counts) <= 1 for counts in seen),
        {
            "requests": requests,
            "failed": failed,
            "replicas": "; ".join(" ".join(str(counts[at]) for at in range(0, len(counts), 10)) for counts in seen),
            "fits_after_s": ", ".join(f"{after:.1f}" for after in fits),
            "turns": ", ".join(str(_turns(counts)) for counts in seen),
        },
    )


def _watch(seconds: float) -> list[tuple[float, int]]:
    """How many replicas there are, twice a second."""
    began, counts = time.monotonic(), []
    while (now := time.monotonic() - began) < seconds:
        states = serve.status().applications[APP_NAME].deployments[POOL].replica_states
        counts.append((now, int(states.get("RUNNING", 0))))
        time.sleep(0.5)
    return counts


def _fits_after(counts: list[tuple[float, int]], needed: int) -> float:
    """Seconds after which there are, for good, as many as are needed or one more or less."""
    misfits = [now for now, count in counts if abs(count - needed) > 1]
    return misfits[-1] if misfits else 0.0


def _turns(counts: list[int]) -> int:
    """How often the number goes the other way."""
    moves = [after - before for before, after in pairwise(counts) if after != before]
    return sum((one > 0) != (other > 0) for one, other in pairwise(moves))


def _redeploy(house: House, app: AppConfig, *pools: str) -> None:
    deploy.undeploy()
    wait_for(lambda: APP_NAME not in serve.status().applications, 60, "undeployed")
    deploy_app(house.cluster, house.catalog, app)
    house.wait_live(model.NAME, *pools)
    wait_for(house.healthy, 30, "HTTP")
