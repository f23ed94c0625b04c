"""The replay: every request ends once, a seed decides everything, and queues are as long as theory has them."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from benchmarks.replay import fleet as fleets
from benchmarks.replay import machines, real, traces
from benchmarks.replay.baselines import STATIC
from benchmarks.replay.book import Book, Ended, Request
from benchmarks.replay.clock import Clock
from benchmarks.replay.figures import Figure, figure, verdict
from benchmarks.replay.fleet import Fleet, Model, Node
from benchmarks.replay.replay import Outcome, policies, replay
from benchmarks.replay.router import FASTEST_KIND
from benchmarks.replay.traces import Loss, Trace

from enginehouse.tools.bench.generator import Sent

POLICIES = policies(routers=2)


def model(row_ms: float = 10.0, share: float = 1.0, batch: int = 8, slo_times: float = 20.0) -> Model:
    """One that takes so long on a CPU node and a tenth of it on a GPU node, exactly as its tables say."""
    tables = {
        "tensorrt": fleets.table("tensorrt", 0.0, row_ms / 10),
        "openvino-cpu": fleets.table("openvino-cpu", 0.0, row_ms),
    }
    return Model(
        "m", 0, share, tables, dict.fromkeys(tables, batch), dict.fromkeys(tables, 1.0), "openvino-cpu", slo_times
    )


def steady(rate: float, seconds: float, models: int = 1, loss: Loss | None = None) -> Trace:
    random = np.random.default_rng(5)
    at = np.sort(random.uniform(0, seconds, int(rate * seconds)))
    return Trace("t", seconds, at.tolist(), random.integers(0, models, len(at)).tolist(), [1] * len(at), loss)


@pytest.fixture(scope="module")
def small() -> Fleet:
    return fleets.make(nodes=10, models=30, seed=3)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_ends_once_and_a_seed_decides_how(small: Fleet, policy: str) -> None:
    for trace in traces.make(small, 10, seed=3):
        first, again, other = (replay(small, trace, POLICIES[policy], seed) for seed in (1, 1, 2))
        assert len(first.ended) == len(trace.at_s)
        assert set(first.ended.tolist()) <= set(Ended)
        assert (first.latency_s > 0).tolist() == (first.ended <= Ended.LATE).tolist()
        np.testing.assert_array_equal(first.ended, again.ended)
        np.testing.assert_array_equal(first.latency_s, again.latency_s)
        assert first.busy_s == again.busy_s
        assert first.latency_s.tolist() != other.latency_s.tolist()


def test_a_request_that_ends_twice_is_an_error() -> None:
    book = Book(Clock(), 1)
    request = Request(0, model(), 1, 0.0, 1.0)
    book.answer(request)
    with pytest.raises(RuntimeError, match="request 0 ended twice"):
        book.end(request, Ended.LOST)


@pytest.mark.parametrize("policy", POLICIES)
def test_under_light_load_everything_is_in_time(policy: str) -> None:
    nodes = [Node("c0", "cpu", 0), Node("c1", "cpu", 0), Node("g0", "gpu", 0)]
    made = Fleet([model(share=0.5), model(share=0.5)], nodes)
    outcome = replay(made, steady(rate=5, seconds=60, models=2), POLICIES[policy], seed=0)
    assert set(outcome.ended.tolist()) == {Ended.IN_TIME}


@pytest.mark.parametrize("policy", ["round robin", "enginehouse"])
def test_a_single_replica_waits_as_long_as_m_d_1_has_it(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "NOISE", 0.0)
    made = Fleet([model(row_ms=10, batch=1, slo_times=1e5)], [Node("c0", "cpu", 0)])
    # Half busy, so the mean wait is half of a call: rho s / 2 (1 - rho).
    outcome = replay(made, steady(rate=50, seconds=200), policies(routers=1)[policy], seed=0)
    wait_ms = outcome.latency_s.mean() * 1e3 - 10 - fleets.HOP_MS
    assert wait_ms == pytest.approx(5.0, rel=0.1)
    assert outcome.busy_s["cpu"] == pytest.approx(0.010 * len(outcome.ended))


def test_engines_that_compute_at_once_share_their_node() -> None:
    clock, ended = Clock(), []
    machine = machines.Machine(clock, Node("c0", "cpu", 0))

    class Told(machines.Engine):
        def done(self) -> None:
            ended.append((self, clock.now))

    replica = machines.Replica(clock, machine, "openvino-cpu", Random(0))
    one, two = (Told(clock, replica, model(), Random(0)) for _ in range(2))
    machine.compute(one, 1.0)
    clock.at(0.5, lambda: machine.compute(two, 1.0))
    clock.run()
    assert ended == [(one, 1.5), (two, 2.0)]
    assert machine.busy_s == 2.0


@pytest.mark.parametrize("policy", POLICIES)
def test_what_a_node_loses_is_answered_elsewhere_once_that_is_noticed(policy: str) -> None:
    nodes = [Node(f"c{number}", "cpu", 0) for number in range(4)]
    loss = Loss([0, 1], at_s=4.0, until_s=12.0)
    # 10 s to answer in: what is lost has time left when it is noticed after two.
    made = Fleet([model(slo_times=1000)], nodes)
    trace = steady(rate=40, seconds=16, loss=loss)
    outcome = replay(made, trace, POLICIES[policy], seed=0)
    assert set(outcome.ended.tolist()) == {Ended.IN_TIME}
    slow = outcome.latency_s > 0.5
    at = np.array(trace.at_s)
    assert slow.any()
    assert at[slow].min() > 3.5
    assert at[slow].max() < 4.0 + machines.SILENT_S


def test_traces_have_the_same_mean_load_and_the_fleet_hosts_every_model(small: Fleet) -> None:
    made = traces.make(small, 600, seed=0, load=0.1)
    rates = {trace.name: sum(trace.rows) / 600 for trace in made}
    assert rates == pytest.approx(dict.fromkeys(rates, 0.1 * small.rows_per_s), rel=0.1)
    assert list(rates) == ["steady", "diurnal", "bursty", "node loss"]
    hosted = {(node.cell, node.accelerator) for node in small.nodes}
    assert {(one.cell, kind) for one in small.models for kind in fleets.ENGINES} <= hosted


def test_a_fleet_without_gpus_is_as_fast_as_its_cpu_nodes() -> None:
    one = model(row_ms=10.0)
    assert Fleet([one], [Node(f"c{number}", "cpu", 0) for number in range(3)]).rows_per_s == pytest.approx(300)


@pytest.mark.parametrize(
    ("error", "latency_s", "ended"),
    [
        (None, 0.1, Ended.IN_TIME),
        (None, 0.3, Ended.LATE),
        ('status 429: {"error": "onnxruntime-cpu is busy"}', 0.01, Ended.REFUSED),
        ('status 504: {"error": "the deadline of 200 ms would pass: p takes 300 ms"}', 0.01, Ended.REFUSED),
        ('status 504: {"error": "no answer within 0.2 s after 1 attempts"}', 0.2, Ended.EXPIRED),
        ("ServerDisconnectedError: ", 0.1, Ended.LOST),
    ],
)
def test_what_a_real_cluster_says_is_told_as_the_replay_tells_it(
    error: str | None, latency_s: float, ended: Ended
) -> None:
    assert real.ended(Sent(0, 1.0, 0.0, latency_s, error), budget_s=0.2) == ended


def test_ours_wins_only_with_fewer_violations_at_no_higher_cost() -> None:
    trace = Trace("t", 10.0, [0.0] * 4, [0] * 4, [1] * 4)

    def seen(policy: str, in_time: int, gpu_s: float) -> Figure:
        ended = np.array([Ended.IN_TIME] * in_time + [Ended.REFUSED] * (4 - in_time))
        return figure(trace, policy, Outcome(ended, np.full(4, 0.1), {"cpu": 0.0, "gpu": gpu_s}))

    ours = seen("enginehouse", 3, gpu_s=3.0)
    assert (ours.violations, ours.refused, ours.goodput) == (0.25, 0.25, 0.3)
    assert ours.cents == pytest.approx(1.006 * 100 / 3600 * 1000)
    assert verdict([ours, seen("other", 2, gpu_s=2.0)]) == "wins"
    assert verdict([ours, seen("other", 2, gpu_s=1.0)]) == "does not win (other: fewer, dearer)"
    assert verdict([ours, seen("other", 4, gpu_s=4.0)]) == "does not win (other: more, as dear)"
    told = [ours, seen(FASTEST_KIND, 3, gpu_s=2.0), seen(STATIC, 2, gpu_s=2.0)]
    assert verdict(told) == f"wins; on the nodes of {STATIC}: fewer, cheaper"
