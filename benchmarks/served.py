"""A server of our own for a benchmark: started, waited for, and ended."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

ENGINEHOUSE = str(Path(sys.executable).parent / "enginehouse")
START_TIMEOUT_S = 180


@contextlib.contextmanager
def served(
    store: Path, port: int, changes: Mapping[str, str] | None = None, options: Sequence[str] = ()
) -> Iterator[tuple[psutil.Process, float]]:
    """`enginehouse serve` with `options` under `changes` of the environment: its process, and when it answered (s).

    Raises SystemExit when it does not come up; ends it afterwards.
    """
    # Ray's sockets lie deep in it and must stay short.
    folder = tempfile.mkdtemp(prefix="serve-", dir="/tmp")
    began = time.monotonic()
    server = subprocess.Popen(
        [ENGINEHOUSE, "serve", str(store), "--port", str(port), *options],
        env=os.environ | {"RAY_TMPDIR": folder} | dict(changes or {}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield psutil.Process(server.pid), _first_answer(server, port) - began
    finally:
        server.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.communicate(timeout=60)
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def _first_answer(server: subprocess.Popen[bytes], port: int) -> float:
    give_up = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < give_up:
        if server.poll() is not None:
            raise SystemExit(f"`enginehouse serve` ended:\n{server.communicate()[1].decode()}")
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=1),
        ):
            return time.monotonic()
        time.sleep(0.1)
    raise SystemExit(f"no answer within {START_TIMEOUT_S} s")
