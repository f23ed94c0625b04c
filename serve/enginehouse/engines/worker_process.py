"""Python processes that work for this one: they find the same packages, and end with it however it ends.

subprocess.Popen(child.command("package.module", "argument"), env=child.environment())
child.begin(sys.argv)       there, first of all: ["argument"]
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs `module`, which has to call `begin`."""
    return [sys.executable, "-m", module, str(os.getpid()), *arguments]


def environment() -> dict[str, str]:
    """This process's environment, with the packages wherever this process found them, installed or not."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def begin(argv: Sequence[str]) -> list[str]:
    """Have the kernel kill this process when its parent (on Linux: the thread that started it) ends.

    Returns the arguments given to `command`.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != int(argv[1]):
            # It ended before the kernel was asked.
            os._exit(1)
    return list(argv[2:])
