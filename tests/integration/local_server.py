"""`enginehouse serve` on a machine without any cluster, as a user starts it, and what is left of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import psutil
from tests.integration.cluster import clean_env, descendants, describe, free_port, wait_for


class LocalServer:
    """One that is started, `under` another program if need be; its output is in a file in `folder`."""

    def __init__(
        self,
        folder: Path,
        store: Path,
        *options: str,
        host: str = "127.0.0.1",
        under: Sequence[str] = (),
        **env: str,
    ) -> None:
        self.port = free_port()
        self.url = f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"
        self.temporary = env.get("TMPDIR", "/tmp")
        self._before = descendants()
        self._log = folder / f"serve-{self.port}.log"
        # Ray writes its token file into the home.
        variables = {"HOME": str(folder), "PYTHONUNBUFFERED": "1"} | env
        with self._log.open("w") as output:
            self.process = subprocess.Popen(
                [
                    *(*under, sys.executable, "-m", "enginehouse", "serve", str(store)),
                    *("--host", host, "--port", str(self.port), *options),
                ],
                env={name: value for name, value in clean_env(**variables).items() if value != "unset"},
                cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def wait_ready(self) -> None:
        """Until all its models answer, or it has ended."""
        wait_for(lambda: "Ctrl-C ends it" in self.said() or self.process.poll() is not None, 180, "ready", every=0.2)
        assert self.process.poll() is None, self.said()

    def said(self) -> str:
        return self._log.read_text()

    def infer(self, model: str, rows: int = 1, timeout: float = 60) -> httpx.Response:
        """Rows of ones, over a connection of their own."""
        tensor = {"name": "x", "datatype": "FP32", "shape": [rows, 4], "data": [1] * 4 * rows}
        return httpx.post(f"{self.url}/v2/models/{model}/infer", json={"inputs": [tensor]}, timeout=timeout)

    def left(self) -> list[psutil.Process]:
        """Processes that came up since it was started and live; needs `adopt_orphans`.

        Not those that came up below one that was there before: a cluster of other tests starts its HAProxy anew.
        """
        return [process for pid, process in descendants().items() if pid not in self._before and self._is_its(process)]

    def _is_its(self, process: psutil.Process) -> bool:
        try:
            return not any(parent.pid in self._before for parent in process.parents())
        except psutil.NoSuchProcess:
            return False

    def router_ports(self) -> list[int]:
        """Where its routers listen for HAProxy."""
        routers = [process for process in self.left() if process.cmdline()[0].endswith(":Router")]
        ports = {c.laddr.port for router in routers for c in router.net_connections("tcp4") if c.status == "LISTEN"}
        # Of the others of the same processes, one is Ray's and one is Serve's for handles.
        return [port for port in ports if 25_000 <= port < 30_000]

    def refuses_connections(self) -> bool:
        try:
            httpx.get(f"{self.url}/v2/health/live", timeout=2)
        except httpx.ConnectError:
            return True
        except httpx.HTTPError:
            return False
        return False

    def signal(self, number: signal.Signals) -> None:
        """As `kill` sends it; SIGINT as a terminal does, to the whole group."""
        if number == signal.SIGINT:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def stop(self) -> None:
        """End it and what is left of it, however it fares."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
        for process in self.left():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.kill()
        self.process.wait()

    def gone_after(self, seconds: float) -> float:
        """Seconds until no process of it lives and its port is closed; fails after so many."""
        began = time.monotonic()
        while self.left() or not self.refuses_connections():
            assert time.monotonic() < began + seconds, f"left after {seconds:g} s: {describe(self.left())}"
            time.sleep(0.1)
        return time.monotonic() - began
