"""Faults that need a cluster of their own: a head that is lost, and one that was started without the serving flags."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
from tests.integration.cluster import Cluster, adopt_orphans, free_port, wait_for

from benchmarks.faults import model
from benchmarks.faults.rows import CALM_S, LOAD, Outcome
from benchmarks.faults.traffic import Kind, callers, capacity, quantile_ms, traffic
from enginehouse.contract.config import SERVING_ENV

#: How long the head is away.
AWAY_S = 10.0
#: All nodes have one machine's ports: one proxy for them all.
_ONE_PROXY = """
import ray, sys
from ray import serve
ray.init(log_to_driver=False)
serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
"""
#: Another job: 200 requests, one after the other.
_JOB = f"""
import numpy as np, ray, time
from enginehouse import Client
ray.init(log_to_driver=False)
client, taken = Client(), []
for _ in range(200):
    began = time.perf_counter()
    client.infer("{model.NAME}", {{"x": np.array([[9]])}})
    taken.append(time.perf_counter() - began)
print(round(1e3 * float(np.median(taken[50:])), 1))
"""


def lost_head() -> Outcome:
    """SIGKILL of the head: its GCS, kept in Redis, and Serve's controller. Requests go to routers on workers."""
    if not shutil.which("redis-server"):
        raise SystemExit("the row `head` needs redis-server (Debian, Ubuntu: apt install redis-server)")
    with _redis() as redis, _deployed(SERVING_ENV | {"RAY_REDIS_ADDRESS": redis}) as (cluster, _):
        before = {name: cluster.replicas(name) for name in ("Router", "onnxruntime-cpu")}
        urls = [_url_of(pid) for pid in before["Router"]]
        can = capacity(urls[0])
        with traffic(urls, LOAD * can, [(Kind(), 1)]) as report:
            time.sleep(CALM_S)
            struck = time.monotonic()
            cluster.kill(cluster.head)
            time.sleep(AWAY_S)
            cluster.start_head()
            wait_for(lambda: cluster.pids("ray::ServeController"), 60, "a new controller")
            wait_for(lambda: _is_told(cluster), 90, "status", every=1)
            back_s = time.monotonic() - struck
            wait_for(lambda: _answers(cluster), 60, "HTTP by the head")
            http_s = time.monotonic() - struck
            time.sleep(CALM_S)
        same = {name: cluster.replicas(name) for name in before} == before
        told = [line.strip() for line in cluster.cli("doctor").stdout.splitlines() if "Redis" in line]
    calm, event = report.during(0, struck), report.during(struck, struck + back_s)
    return Outcome(
        "head",
        "SIGKILL of the head with its GCS in Redis: none failed on the workers, all of which stay",
        not report.failed() and same,
        {
            "rate_per_s": round(LOAD * can, 1),
            "requests": len(report.sent),
            "failed": len(report.failed()),
            "calm_p50": quantile_ms(calm, 50),
            "calm_p99": quantile_ms(calm, 99),
            "event_p50": quantile_ms(event, 50),
            "event_p99": quantile_ms(event, 99),
            "event_worst": quantile_ms(event, 100),
            "same_processes": str(same),
            "head_away_s": AWAY_S,
            "controller_back_after_s": round(back_s, 1),
            "http_by_the_head_after_s": round(http_s, 1),
            "doctor": "; ".join(told),
            "failures": "; ".join({one.problem[:120] for one in report.failed()}),
        },
    )


def no_flags() -> Outcome:
    """A cluster without the serving flags, HAProxy among them; and a job without them on one that has them."""
    seen: dict[str, float | int | str] = {}
    failed = 0
    for name, flags in (("with_flags", SERVING_ENV), ("without", {})):
        with _deployed(flags) as (cluster, said):
            with callers(cluster.url, 1) as one:
                time.sleep(CALM_S)
            failed += len(one.failed())
            seen |= {f"{name}_p50": quantile_ms(one.sent, 50), f"{name}_capacity_per_s": capacity(cluster.url)}
            jobs = {"": cluster.run(sys.executable, "-c", _JOB)}
            if flags:
                unset = [part for flag in SERVING_ENV for part in ("-u", flag)]
                jobs["_job_without"] = cluster.run("env", *unset, sys.executable, "-c", _JOB)
            for job, ran in jobs.items():
                failed += ran.returncode
                seen[f"{name}{job}_client_p50"] = float(ran.stdout.split()[-1]) if not ran.returncode else ran.stderr
            seen[f"{name}_serve_says"] = _slower(said)
            seen[f"{name}_doctor_says"] = _slower(cluster.cli("doctor").stdout)
    return Outcome(
        "flags",
        "a cluster, or a job, without the serving flags: works, slower, and says so",
        not failed
        and not seen["with_flags_serve_says"]
        and bool(seen["without_serve_says"])
        and bool(seen["without_doctor_says"]),
        {"failed": failed, **seen},
    )


def _slower(said: str) -> str:
    """The sentence that says so."""
    return next((line.strip() for line in said.splitlines() if "slower" in line), "")


@contextlib.contextmanager
def _deployed(flags: Mapping[str, str]) -> Iterator[tuple[Cluster, str]]:
    """`enginehouse serve` on a cluster with nothing on its head and an engine on each of two nodes; what it said."""
    adopt_orphans()
    with tempfile.TemporaryDirectory() as folder:
        model.publish(Path(folder))
        cluster = Cluster(flags, cpus=0)
        try:
            for ip in ("127.0.0.3", "127.0.0.4"):
                cluster.add("cpu", ip)
            started = cluster.run(sys.executable, "-c", _ONE_PROXY, str(cluster.http_port))
            served = cluster.cli(
                *("serve", folder, "--port", str(cluster.http_port), "--threads", "1"),
                *("--min-replicas", "2", "--max-replicas", "2"),
                timeout=180,
            )
            if served.returncode:
                raise SystemExit(f"{started.stderr}\n{served.stdout}\n{served.stderr}")
            wait_for(lambda: _answers(cluster), 60, "HTTP")
            yield cluster, served.stdout
        finally:
            cluster.stop()


@contextlib.contextmanager
def _redis() -> Iterator[str]:
    """A Redis that keeps what it has in memory only; its address."""
    port = free_port()
    process = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _url_of(router: int) -> str:
    """Where a router's process itself listens for HTTP."""
    for connection in psutil.Process(router).net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and 31_500 <= connection.laddr.port <= 31_900:
            return f"127.0.0.1:{connection.laddr.port}"
    raise SystemExit(f"router {router} listens on no port of its own")


def _is_told(cluster: Cluster) -> bool:
    """Whether `enginehouse status` says what is served."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return cluster.cli("status", timeout=20).returncode == 0
    return False


def _answers(cluster: Cluster) -> bool:
    with callers(cluster.url, 1) as report:
        time.sleep(0.5)
    return bool(report.sent) and not report.failed()


#: In the order in which they are run, after those that share a house.
APART: Mapping[str, Callable[[], Outcome]] = {"head": lost_head, "flags": no_flags}
