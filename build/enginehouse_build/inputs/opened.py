"""Which files a piece of Python code reads: what the result of a factory depends on besides its arguments."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

import enginehouse
import enginehouse_build

_WRITING = os.O_WRONLY | os.O_RDWR
#: Installed packages count by their versions, our own code by its digest, and the others are no files.
_ELSEWHERE = (
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    *enginehouse.__path__,
    *enginehouse_build.__path__,
    *("/proc", "/sys", "/dev"),
)


class OpenedFiles:
    """Records every file that this process opens for reading from now on, through Python, until `files` is called.

    Files that native code opens by itself are not seen.
    """

    def __init__(self) -> None:
        self._paths: set[str] = set()
        self._is_on = True
        # A hook cannot be removed again, only be told to do nothing.
        sys.addaudithook(self._hook)

    def files(self) -> list[Path]:
        """Stop, and return the files that exist, without those of installed packages."""
        self._is_on = False
        sources = {_source(Path(path)).resolve() for path in self._paths}
        return sorted(
            path for path in sources if path.is_file() and not any(path.is_relative_to(root) for root in _ELSEWHERE)
        )

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and self._is_on:
            path, _, flags = arguments
            if isinstance(path, str | bytes | os.PathLike) and not (isinstance(flags, int) and flags & _WRITING):
                self._paths.add(os.fsdecode(path))


def _source(path: Path) -> Path:
    # Python opens only the compiled file of a module that did not change.
    if path.suffix == ".pyc" and path.parent.name == "__pycache__":
        # Not every tool that writes compiled files names them as Python does.
        with contextlib.suppress(ValueError):
            return Path(importlib.util.source_from_cache(path))
    return path
