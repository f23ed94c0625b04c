"""Another user of this machine, who tries what it can; only root can become one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

UID = 54321

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


def as_other_user(act: Callable[[], object], uid: int = UID) -> bool:
    """Whether `act` works for another user, in a process of its own."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            act()
            status = 0
        except OSError:
            pass
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def reads(path: Path) -> Callable[[], object]:
    """Reads a file, or lists a folder."""
    return lambda: list(path.iterdir()) if path.is_dir() else path.read_bytes()


def plants(folder: Path) -> Callable[[], object]:
    """Puts a file into a folder."""
    return lambda: (folder / "planted").write_text("x")


def replaces(path: Path) -> Callable[[], object]:
    """Takes something away from its place."""
    return lambda: path.rename(path.with_name("taken"))
