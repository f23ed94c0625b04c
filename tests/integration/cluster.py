"""A real Ray cluster of several nodes on this machine: each node is its own `ray start`, so that one can be killed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import psutil
import yaml

from enginehouse.contract.config import SERVING_ENV

ROOT = Path(__file__).parents[2]
#: The node types that users start from: what is placed here is placed there.
NODE_TYPES = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
_PR_SET_CHILD_SUBREAPER = 36
_T = TypeVar("_T")


def free_port() -> int:
    """A port that nothing takes by chance before it is used: not one of the system's own, nor of Ray's workers."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def clean_env(**extra: str) -> dict[str, str]:
    """The environment of this process without anything that changes Ray."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | extra


def wait_for(condition: Callable[[], _T], timeout: float, what: str, every: float = 0.1) -> _T:
    """The first true value of `condition`; fails naming `what` after `timeout` seconds."""
    give_up = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > give_up:
            raise AssertionError(f"not within {timeout:g} s: {what} (last: {value!r})")
        time.sleep(every)


def adopt_orphans() -> None:
    """Become the parent of every process below this one whose own parent dies, so that none can be left unseen."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants() -> dict[int, psutil.Process]:
    """Every living process below this one."""
    alive = {}
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                alive[process.pid] = process
        except psutil.NoSuchProcess:
            continue
    return alive


def describe(processes: Iterable[psutil.Process]) -> list[str]:
    """What is left, for a message."""
    shown = []
    for process in processes:
        try:
            shown.append(f"{process.pid} {' '.join(process.cmdline())[:120] or process.name()}")
        except psutil.NoSuchProcess:
            continue
    return shown


class Node:
    """One `ray start --block` and everything below it."""

    def __init__(self, cluster: Cluster, ip: str, labels: dict[str, str], arguments: list[str]) -> None:
        self.ip = ip
        self.log = cluster.folder / f"node-{ip}-{len(cluster.nodes)}.log"
        self._process = subprocess.Popen(
            [
                *(str(Path(sys.executable).with_name("ray")), "start", "--block", "--node-ip-address", ip),
                *("--object-store-memory", str(100 << 20), "--disable-usage-stats"),
                *(["--labels", ",".join(f"{key}={value}" for key, value in labels.items())] if labels else []),
                *arguments,
            ],
            env=cluster.env,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            # Not this test run's terminal: Ctrl-C is for pytest, which then ends the nodes.
            start_new_session=True,
        )

    @property
    def up(self) -> bool:
        if self._process.poll() is not None:
            raise AssertionError(f"the node on {self.ip} did not start:\n{self.log.read_text()}")
        # What `ray start --block` prints once the node has joined.
        return "Ray runtime started" in self.log.read_text()

    def processes(self) -> list[psutil.Process]:
        try:
            top = psutil.Process(self._process.pid)
            return [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        """`kill -9` of the whole node at once, as when its power goes."""
        doomed = self.processes()
        for process in doomed:
            _send(process, signal.SIGKILL)
        self._process.wait()
        psutil.wait_procs(doomed, timeout=10)

    def freeze(self) -> None:
        """SIGSTOP of the whole node at once: it keeps its connections and says nothing, as when its network is cut."""
        for process in self.processes():
            _send(process, signal.SIGSTOP)


class Cluster:
    """A head without accelerator label; nodes are added, killed and added again.

    `flags` are what every node is started with beside what keeps it apart from other clusters; the head has `cpus`.
    """

    #: Further ones for the head.
    arguments: tuple[str, ...] = ()

    def __init__(self, flags: Mapping[str, str] = SERVING_ENV, cpus: int = 7) -> None:
        # Short: Ray's sockets below it may have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="eh-"))
        self.http_port, self.grpc_port = free_port(), free_port()
        self.url = f"127.0.0.1:{self.http_port}"
        self.nodes: list[Node] = []
        self.env = clean_env(**flags, **self._apart())
        self.address = f"127.0.0.2:{free_port()}"
        self._cpus = cpus
        self.head = self.start_head()

    def start_head(self) -> Node:
        """The head, or another one in its place: what it knew is there again if it was kept in Redis."""
        # On a machine of its own a head would not take the other nodes' processes for one that still runs.
        (self.folder / "ray_current_cluster").unlink(missing_ok=True)
        _, _, port = self.address.rpartition(":")
        self.head = Node(
            self,
            "127.0.0.2",
            {},
            [
                *("--head", "--port", port, "--include-dashboard", "false", "--temp-dir", str(self.folder)),
                *("--ray-client-server-port", str(free_port()), "--num-cpus", str(self._cpus)),
                *self.arguments,
            ],
        )
        return self._joined(self.head)

    def _apart(self) -> dict[str, str]:
        """Everything that two clusters of one machine would otherwise share."""
        folder = self.folder
        return {
            "PYTHONPATH": os.pathsep.join([str(ROOT / "serve"), str(ROOT)]),
            # What an earlier run left there must not be known here: engines that crashed, for instance.
            "ENGINEHOUSE_CACHE": str(folder / "cache"),
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            # A killed node is dead after five checks that fail: in 5 s and not in 15. A slow one has as long as ever.
            "RAY_health_check_period_ms": "1000",
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": "31500",
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": "31900",
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
            "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        }

    def add(self, accelerator: str, ip: str = "") -> Node:
        """A node of cluster.yaml's type for this accelerator, but with two logical CPUs, once it has joined.

        One after the other: of two nodes that start in one session folder at once, neither came up (Ray 2.60).
        """
        node_type = NODE_TYPES[f"{accelerator}-worker"]
        gpus = node_type["resources"].get("GPU", 0)
        node = Node(
            self,
            ip or {"cpu": "127.0.0.3", "gpu": "127.0.0.4"}[accelerator],
            node_type["labels"],
            ["--address", self.address, "--num-cpus", "2", "--num-gpus", str(gpus)],
        )
        return self._joined(node)

    def _joined(self, node: Node) -> Node:
        self.nodes.append(node)
        wait_for(lambda: node.up, 60, f"node {node.ip} joins")
        return node

    def kill(self, node: Node) -> None:
        self.nodes.remove(node)
        node.kill()

    def pids(self, title: str) -> list[int]:
        """Processes of the cluster whose title begins so, for instance `ray::ServeController`."""
        found = []
        for node in self.nodes:
            for process in node.processes():
                try:
                    if " ".join(process.cmdline()).startswith(title):
                        found.append(process.pid)
                except psutil.NoSuchProcess:
                    continue
        return found

    def replicas(self, deployment: str) -> list[int]:
        """Processes of the running replicas of one of our deployments."""
        return self.pids(f"ray::ServeReplica:enginehouse:{deployment}")

    @contextlib.contextmanager
    def joined(self, by: Node | None = None) -> Iterator[None]:
        """This process is a driver of the cluster, through the head or the node `by`, while the context lasts."""
        os.environ.update({name: text for name, text in self.env.items() if name.startswith("RAY_")})
        import ray

        ip = (by or self.head).ip
        try:
            ray.init(address=self.address, _node_ip_address=ip, log_to_driver=False, logging_level="ERROR")
            yield
        finally:
            ray.shutdown()
            for name in [name for name in os.environ if name.startswith("RAY_")]:
                del os.environ[name]

    def run(self, *command: str, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program as another job of this cluster would, in a folder of its own."""
        env = self.env | {"RAY_ADDRESS": self.address} | options.pop("env", {})
        return subprocess.run(
            command,
            env=env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            **({"cwd": self.folder} | options),
        )

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        """`enginehouse ...` against this cluster, running; what it says can be read at its end."""
        command = [sys.executable, "-m", "enginehouse", *arguments, "--address", self.address]
        env = self.env | {"RAY_ADDRESS": self.address}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True, cwd=self.folder)

    def cli(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """`enginehouse ...` against this cluster."""
        address = [] if arguments[0] == "infer" else ["--address", self.address]
        return self.run(sys.executable, "-m", "enginehouse", *arguments, *address, timeout=timeout)

    def stop(self) -> None:
        for node in reversed(self.nodes):
            node.kill()
        self.nodes.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
