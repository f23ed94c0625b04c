"""The load generators, against a real server that counts what it gets, and what wrk prints."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from enginehouse.contract.errors import ConfigError, NoBackend
from enginehouse.tools.bench import closed_loop, generator, load

BODY = b"\x00\xffnot text\r\n" * 10


class Server(ThreadingHTTPServer):
    daemon_threads = True
    pause_s = 0.005
    fails_every = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.got: list[bytes] = []
        self.asked: set[tuple[str, bytes]] = set()
        self.kinds: set[str | None] = set()
        self.url = f"http://127.0.0.1:{self.server_port}/infer"


class Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append(body)
        self.server.asked.add((self.path, body))
        self.server.kinds.add(self.headers["x-kind"])
        time.sleep(self.server.pause_s)
        fails = self.server.fails_every and len(self.server.got) % self.server.fails_every == 0
        self.send_response(503 if fails else 200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(params=["wrk", "python"])
def made_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "python":
        monkeypatch.setattr(load, "has_wrk", lambda: False)
    elif not load.has_wrk():
        pytest.skip("wrk is not installed (apt install wrk)")
    return str(request.param)


def test_a_closed_loop_counts_every_answer(server: Server, made_by: str) -> None:
    figure = closed_loop(server.url, BODY, {"x-kind": "a b"}, connections=4, seconds=2, processes=[])
    assert figure.generator == made_by
    assert set(server.got) == {BODY}
    assert server.kinds == {"a b"}
    # What was under way at the end has no answer.
    assert 0 <= len(server.got) - figure.answers <= 4
    assert figure.errors == 0
    assert 5 <= figure.latency.p50 <= figure.latency.p99 <= figure.latency.worst
    assert sum(figure.windows) / 5 * figure.seconds == pytest.approx(figure.answers, abs=8, rel=0.1)
    assert figure.answers_per_s == pytest.approx(figure.answers / 2, rel=0.1)
    assert 0 < figure.generator_busy < 2


def test_failures_are_counted_and_no_answers(server: Server, made_by: str) -> None:
    server.fails_every = 3
    figure = closed_loop(server.url, BODY, {}, connections=2, seconds=1, processes=[])
    assert figure.errors == pytest.approx(len(server.got) / 3, abs=3)
    assert figure.answers == pytest.approx(len(server.got) * 2 / 3, abs=4)
    assert "status" in figure.error


def test_nobody_there_is_said(made_by: str) -> None:
    with pytest.raises((NoBackend, ConfigError)) as caught:
        figure = closed_loop("http://127.0.0.1:1/x", BODY, {}, connections=1, seconds=1, processes=[])
        assert figure.answers == 0 and figure.errors
        raise NoBackend(figure.error)
    assert caught.value


def test_an_open_loop_sends_when_due_whatever_becomes_of_it(server: Server) -> None:
    server.pause_s = 0.3
    due = [number / 50 for number in range(25)]
    urls = [server.url, f"{server.url}/b"]
    order = generator.Order(urls, {}, [b"a", b"b"], due_s=due, which=[number % 2 for number in range(25)])
    result, used = generator.run(order, [])
    assert Counter(server.got) == {b"a": 13, b"b": 12}
    assert server.asked == {("/infer", b"a"), ("/infer/b", b"b")}
    assert len(result.requests) == 25
    assert [request.error for request in result.requests] == [None] * 25
    # One after the other they would have taken 7.5 s.
    assert max(request.ended_s for request in result.requests) < 3
    assert min(request.latency_s for request in result.requests) >= 0.3
    # Sent no earlier than the timers are wrong, which is far less than the 20 ms between two of them.
    assert all(abs(request.due_s - due[round(request.due_s * 50)]) < 0.005 for request in result.requests)
    assert used.seconds > 0.7


def test_an_open_loop_gives_up_on_a_server_that_falls_behind(server: Server) -> None:
    server.pause_s = 0.5
    order = generator.Order(server.url, {}, [b"a"], due_s=[0.0] * 40, which=[0] * 40, most_waiting=10)
    result, _ = generator.run(order, [])
    assert len(result.requests) == 10
    assert result.unsent == 30


def corrected(latencies: Counter[int], mean: int) -> Counter[int]:
    """What wrk does to its latencies (stats_correct), forwards."""
    found = Counter(latencies)
    for value in range(2 * mean, max(latencies) + 1):
        for added in range(value - mean, mean, -mean):
            found[added] += found[value]
    return +found


def test_what_wrk_adds_to_its_latencies_is_taken_away_again() -> None:
    measured = Counter({90: 40, 100: 50, 110: 5, 251: 3, 380: 1, 1033: 1})
    # 100 requests on 2 connections in 5 ms: 100 us each.
    printed = ["requests 100", "microseconds 5000", "errors status 0", "sent 1 52", "sent 2 50"]
    seen = corrected(measured, 100)
    assert seen.total() > 100
    printed += [f"latency {value} {count}" for value, count in seen.items()]
    counts = load.counts_of("\n".join(printed), connections=2, duration=5)
    assert counts.latencies_ms == {value * 1e-3: count for value, count in measured.items()}
    assert counts.windows == (50, 50, 0, 0, 0)


def test_latencies_that_do_not_add_up_are_refused() -> None:
    printed = "requests 10\nmicroseconds 1000\nlatency 100 30"
    with pytest.raises(ConfigError, match="30 latencies of 10 requests"):
        load.counts_of(printed, connections=1, duration=1)


def test_wrk_is_looked_for_on_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("wrk") is None
    assert not load.has_wrk()
