"""A fault each, under traffic: what was to be reached, and what was seen."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.integration.cluster import wait_for

from benchmarks.faults import model
from benchmarks.faults.house import House
from benchmarks.faults.traffic import Kind, Report, callers, quantile_ms, traffic

#: Share of what the engines can answer that is asked for.
LOAD = 0.8
#: The deadline that requests state while a node is lost.
DEADLINE_MS = 5000
#: Seconds before a fault, and after it, that are looked at.
CALM_S, EVENT_S = 8.0, 12.0
KILLS = 5
#: Share of the stream that cannot be in time, how often it is held against the rest alone, and by how much the rest may
#: then be slower: as much as two runs of the same differ.
IMPOSSIBLE, TURNS, UNAFFECTED = 0.3, 3, 1.25


@dataclass(frozen=True)
class Outcome:
    """One row: what it had to reach, whether it did, and figures (times in milliseconds unless named otherwise)."""

    row: str
    bar: str
    reached: bool
    figures: Mapping[str, float | int | str]


def killed_replica(house: House) -> Outcome:
    """`kill -9` of an engine replica: more is asked for than what is left can do, until it is replaced."""
    return _killed_replica(house, "replica", "80 % of capacity", LOAD * house.capacity)


def covered_replica(house: House) -> Outcome:
    """The same at 80 % of what is left, so that no queue grows."""
    return _killed_replica(house, "replica-covered", "80 % of what is left", LOAD * house.capacity_of_one)


def _killed_replica(house: House, row: str, load: str, rate: float) -> Outcome:
    """`KILLS` times, each once the last one is replaced and what gathered meanwhile is answered."""
    worst, away = [], []
    with traffic([house.url], rate, [(Kind(), 1)]) as report:
        time.sleep(CALM_S)
        calm = report.during(0, time.monotonic())
        usual_ms = quantile_ms(calm, 50)
        lately = lambda: [one for one in report.sent if one.ended > time.monotonic() - 2]  # noqa: E731
        for _ in range(KILLS):
            victim, killed = house.victim("gpu-pool"), time.monotonic()
            os.kill(victim, signal.SIGKILL)
            replaced = lambda victim=victim: [pid for pid in house.cluster.replicas("gpu-pool") if pid != victim]  # noqa: E731
            wait_for(replaced, 60, "a new replica")
            house.wait_live(model.NAME, "gpu-pool")
            away.append(time.monotonic() - killed)
            wait_for(lambda: quantile_ms(lately(), 50) < 2 * usual_ms, 60, "calm")
            time.sleep(2)
            worst.append(max(one.taken_s for one in report.sent if one.ended >= killed) * 1e3)
    return Outcome(
        row,
        f"kill -9 of a replica at {load}, five times: none failed",
        not report.failed(),
        {
            "rate_per_s": round(rate, 1),
            **_counts(report),
            "calm_p50": usual_ms,
            "calm_p99": quantile_ms(calm, 99),
            "worst_added": round(max(worst) - usual_ms, 1),
            "worst_added_each": ", ".join(f"{one - usual_ms:.0f}" for one in worst),
            "replaced_after_s": ", ".join(f"{one:.1f}" for one in away),
            "failures": _told(report),
        },
    )


def killed_router(house: House) -> Outcome:
    """`kill -9` of an ingress replica: kept connections, and new ones meanwhile."""
    routers = house.cluster.replicas("Router")
    unreached = []
    with callers(house.url, 16, Kind()) as report:
        time.sleep(CALM_S / 2)
        killed = time.monotonic()
        os.kill(routers[0], signal.SIGKILL)
        asked = 0
        while len(set(house.cluster.replicas("Router")) - {routers[0]}) < 2 and time.monotonic() < killed + 60:
            asked += 1
            if (status := _ask(house)[0]) != 200:
                unreached.append(status)
            time.sleep(0.02)
        back_s = time.monotonic() - killed
        time.sleep(CALM_S / 2)
    failed = report.failed()
    under_way = [one for one in report.sent if one.due <= killed <= one.ended]
    strays = [one for one in failed if one not in under_way]
    return Outcome(
        "router",
        "kill -9 of a router: only what was under way on its connections; the next connection is answered",
        not strays and not unreached,
        {
            **_counts(report),
            "under_way_when_killed": len(under_way),
            "failed_of_those": len(failed) - len(strays),
            "failed_later": len(strays),
            "new_connections": asked,
            "new_connections_failed": len(unreached),
            "back_after_s": round(back_s, 1),
        },
    )


def frozen_router(house: House) -> Outcome:
    """SIGSTOP of an ingress replica: what was sent to it hangs, until HAProxy and then Serve find out."""
    routers = house.cluster.replicas("Router")
    struck = time.monotonic()
    os.kill(routers[0], signal.SIGSTOP)
    asked = []
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < struck + 3 * CALM_S:
            asked.append((time.monotonic() - struck, _ask(house, timeout_s=1.0)[0]))
            time.sleep(0.02)
        os.kill(routers[0], signal.SIGKILL)
    back = lambda: len(set(house.cluster.replicas("Router")) - {routers[0]}) == 2  # noqa: E731
    wait_for(back, 60, "two routers")
    unanswered = [at for at, status in asked if status != 200]
    last_s = max([0.0, *unanswered])
    return Outcome(
        "frozen-router",
        "SIGSTOP of a router: new connections are answered again within 5 s",
        last_s < 5,
        {"new_connections": len(asked), "unanswered": len(unanswered), "last_unanswered_s": round(last_s, 1)},
    )


def killed_node(house: House) -> Outcome:
    """SIGKILL of a node's raylet and workers, at 80 % of what is left."""
    return _lost_node(house, "node", "SIGKILL of a node", lambda: house.cluster.kill(house.gpu))


def frozen_node(house: House) -> Outcome:
    """SIGSTOP of all of a node's processes, at 80 % of what is left."""
    return _lost_node(house, "frozen", "SIGSTOP of a node", lambda: house.gpu.freeze(), within_s=2.0)


def _lost_node(house: House, row: str, what: str, strike: Callable[[], None], within_s: float = 0.0) -> Outcome:
    rate = LOAD * house.capacity_of_one
    with traffic([house.url], rate, [(Kind(deadline_ms=DEADLINE_MS), 1)]) as report:
        time.sleep(CALM_S)
        struck = time.monotonic()
        strike()
        time.sleep(EVENT_S)
        event = report.during(struck, struck + EVENT_S)
        # It is long past: what comes back is none of the event's business.
        lost_at = time.monotonic()
    house.restore(house.gpu)
    held_up = [one.due - struck for one in report.sent if one.attempts > 1 and one.ended >= struck]
    away_s = max([0.0, *held_up])
    p99 = quantile_ms(event, 99)
    return Outcome(
        row,
        f"{what}, deadline of 5 s: none failed, "
        + (f"traffic away within {within_s:g} s" if within_s else "p99 meanwhile under 3 s"),
        not report.failed() and (away_s <= within_s if within_s else p99 < 3000),
        {
            "rate_per_s": round(rate, 1),
            **_counts(report),
            "calm_p50": quantile_ms(report.during(0, struck), 50),
            "event_p50": quantile_ms(event, 50),
            "event_p99": p99,
            "event_worst": quantile_ms([one for one in report.sent if one.ended >= struck], 100),
            "tried_again": len(held_up),
            "last_sent_there_s": round(away_s, 2),
            "watched_s": round(lost_at - struck, 1),
            "failures": _told(report),
        },
    )


def nobody(house: House) -> Outcome:
    """Both nodes killed: how fast a refusal comes from then on, and that answers do once they are back."""
    with traffic([house.url], LOAD * house.capacity_of_one, [(Kind(deadline_ms=DEADLINE_MS), 1)]) as before:
        time.sleep(2)
        struck = time.monotonic()
        for node in (house.gpu, house.cpu):
            house.cluster.kill(node)
        killed = time.monotonic()
    refusals = []
    while time.monotonic() < killed + 25:
        refusals.append(_ask(house))
        time.sleep(0.05)
    times_ms = sorted(taken_s * 1e3 for _, taken_s, __ in refusals)
    began = time.monotonic()
    house.restore()
    wait_for(lambda: _ask(house)[0] == 200, 60, "an answer")
    back_s = time.monotonic() - began
    under_way = [one for one in before.sent if one.ended >= struck]
    return Outcome(
        "nobody",
        "no backend alive: 503 with the reason within 100 ms; answers come back without a restart",
        {status for status, _, __ in refusals} == {503}
        and all("no live backend" in text for _, __, text in refusals)
        and times_ms[-1] < 100,
        {
            "refusals": len(refusals),
            "statuses": ", ".join(sorted({str(status) for status, _, __ in refusals})),
            "refused_p50": round(times_ms[len(times_ms) // 2], 1),
            "refused_worst": round(times_ms[-1], 1),
            "under_way_when_killed_worst": quantile_ms(under_way, 100),
            "answers_after_s": round(back_s, 1),
            "last_reason": refusals[-1][2],
        },
    )


def impossible(house: House) -> Outcome:
    """Of a stream 30 % has a deadline below what a row takes, and an input that would kill who computes it."""
    row_ms = 1e3 / house.capacity_of_one
    good, bad = Kind(deadline_ms=2000), Kind([model.CRASHES], deadline_ms=0.5 * row_ms)
    rate = LOAD * house.capacity
    replicas = house.victim("gpu-pool"), house.victim("cpu-pool")
    alone, mixed, refused = Report(), Report(), Report()
    for turn in range(TURNS):
        # The same arrivals, without the others and with them.
        for report in (alone, mixed):
            with contextlib.ExitStack() as stack:
                some = stack.enter_context(traffic([house.url], (1 - IMPOSSIBLE) * rate, [(good, 1)], seed=turn))
                if report is mixed:
                    hopeless = stack.enter_context(traffic([house.url], IMPOSSIBLE * rate, [(bad, 1)], seed=100 + turn))
                time.sleep(CALM_S)
            report.sent += some.sent
        refused.sent += hopeless.sent
    after = house.victim("gpu-pool"), house.victim("cpu-pool")
    p50s, p99s = ([quantile_ms(report.sent, percent) for report in (alone, mixed)] for percent in (50, 99))
    return Outcome(
        "impossible",
        "30 % of requests with impossible deadlines: none computed, the others unaffected",
        after == replicas
        and {one.status for one in refused.sent} == {504}
        and not alone.failed()
        and not mixed.failed()
        and p99s[1] < UNAFFECTED * p99s[0],
        {
            "rate_per_s": round(rate, 1),
            "impossible": len(refused.sent),
            "impossible_deadline": round(bad.deadline_ms, 2),
            "statuses": ", ".join(sorted({str(one.status) for one in refused.sent})),
            "replicas_lost": len(set(replicas) - set(after)),
            "refused_p50": quantile_ms(refused.sent, 50),
            "refused_p99": quantile_ms(refused.sent, 99),
            "others": len(mixed.sent),
            "others_failed": len(mixed.failed()),
            "others_p50_without_and_with": f"{p50s[0]} and {p50s[1]}",
            "others_p99_without_and_with": f"{p99s[0]} and {p99s[1]}",
        },
    )


def _told(report: Report) -> str:
    return "; ".join(sorted({one.problem[:120] for one in report.failed()})[:5])


def _counts(report: Report) -> dict[str, int]:
    return {"requests": len(report.sent), "failed": len(report.failed())}


def _ask(house: House, timeout_s: float = 45) -> tuple[int, float, str]:
    """One request on a connection of its own: status (0: there was none), seconds, and what was said."""
    host, _, port = house.url.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=timeout_s)
    body = json.dumps({"inputs": [{"name": "x", "datatype": "INT64", "shape": [1, 1], "data": [9]}]})
    began = time.monotonic()
    try:
        connection.request("POST", f"/v2/models/{model.NAME}/infer", body)
        answer = connection.getresponse()
        return answer.status, time.monotonic() - began, answer.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return 0, time.monotonic() - began, f"{type(error).__name__}: {error}"
    finally:
        connection.close()


#: In the order in which they are run.
ROWS: Mapping[str, Callable[[House], Outcome]] = {
    "replica": killed_replica,
    "replica-covered": covered_replica,
    "router": killed_router,
    "frozen-router": frozen_router,
    "node": killed_node,
    "frozen": frozen_node,
    "nobody": nobody,
    "impossible": impossible,
}
