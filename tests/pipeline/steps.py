"""Steps of the tests, found by name in a process of their own: what one may do to it, and measuring quickly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from enginehouse.contract.errors import ConversionFailed


def add(left: int, right: int) -> int:
    print("adding")
    return left + right


def refuse(why: str) -> None:
    raise ConversionFailed(why)


def stumble() -> None:
    {}["missing"]


def die(by: signal.Signals) -> None:
    os.kill(os.getpid(), by)
    time.sleep(60)


def leave(code: int) -> None:
    print("so long", file=sys.stderr, flush=True)
    os._exit(code)


def hang(pids: Path) -> None:
    """Write down the ids of this process and of one it started, and wait."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    temporary = pids.with_suffix(".partial")
    temporary.write_text(f"{os.getpid()} {child.pid}")
    temporary.rename(pids)
    time.sleep(60)


def grow(mib: int) -> None:
    data = bytearray(mib << 20)
    data[:: 1 << 12] = b"x" * len(data[:: 1 << 12])
    time.sleep(60)


def measure_once(*arguments: Any) -> Any:
    """The step of a build that measures its engines, with one round where ten may be needed until figures settle."""
    from enginehouse_build.judge import measured, profile

    profile.AGREEING_ROUNDS = profile.MOST_ROUNDS = 1
    return measured.measured_beside(*arguments)
