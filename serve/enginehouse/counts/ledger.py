"""The ledger of this process: rows of numbers that it counts in, in files that are there when it is killed."""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import sys
import threading
import time
from pathlib import Path

import orjson

from enginehouse.contract.errors import ConfigError
from enginehouse.contract.store.cache import private_cache
from enginehouse.counts.rows import WIDTH, Key

logger = logging.getLogger("ray.serve")

#: Rows of a file; there is another one when it is full.
ROWS = 1024
_ROW_BYTES = 8 * WIDTH


class Ledger:
    """Rows by key. With a `folder` they are in files there, else in memory only, and lost with the process.

    Each row is written by one thread, or by several that take turns: adding to a number is no atomic operation.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        #: Of this process, and of no other one on its machine.
        self.process = f"{os.getpid()}-{time.time_ns()}"
        self._rows: dict[Key, memoryview] = {}
        self._lock = threading.Lock()
        self._files = 0
        self._free: list[memoryview] = []
        self._names = -1

    def row(self, *key: str) -> memoryview:
        """The numbers of this row: `row[place] += 1`. To be kept, for looking it up takes longer than counting."""
        with self._lock:
            row = self._rows.get(key)
            if row is None:
                if not self._free:
                    self._free = _split(self._new_file())
                row = self._rows[key] = self._free.pop(0)
                if self._names >= 0:
                    # Before anything is counted there: a row without a name says nothing.
                    self._name(key)
            return row

    def rows(self) -> dict[Key, list[int]]:
        """All of them, now."""
        with self._lock:
            return {key: row.tolist() for key, row in self._rows.items()}

    def _name(self, key: Key) -> None:
        try:
            os.write(self._names, orjson.dumps(key) + b"\n")
        except OSError as error:
            self._give_up(error)

    def _new_file(self) -> mmap.mmap:
        if self.folder is None:
            return mmap.mmap(-1, ROWS * _ROW_BYTES)
        self._files += 1
        stem = self.folder / f"{self.process}-{self._files}"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
            names = os.open(stem.with_suffix(".names"), flags, 0o600)
            memory = _mapped(stem.with_suffix(".counts"))
            if self._names >= 0:
                os.close(self._names)
            self._names = names
            return memory
        except OSError as error:
            self._give_up(error)
            return mmap.mmap(-1, ROWS * _ROW_BYTES)

    def _give_up(self, error: OSError) -> None:
        logger.warning("what this process begins to count from now on is told to nobody: %s", error)
        self._names = -1


def _split(memory: mmap.mmap) -> list[memoryview]:
    numbers = memoryview(memory).cast("Q")
    return [numbers[start : start + WIDTH] for start in range(0, ROWS * WIDTH, WIDTH)]


def _mapped(path: Path) -> mmap.mmap:
    """A new file as memory, zeros, locked for as long as this process lives. Raises OSError where there is no room."""
    size = ROWS * _ROW_BYTES
    # Under another name until it is locked: nobody may find it free before.
    made = path.with_suffix(".new")
    # Never closed: with it the lock would be gone.
    descriptor = os.open(made, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Not `truncate`: pages of a sparse file take room when they are written, and on a full disk that is SIGBUS.
        if sys.platform == "linux":
            os.posix_fallocate(descriptor, 0, size)
        else:
            os.write(descriptor, bytes(size))
        memory = mmap.mmap(descriptor, size)
        made.rename(path)
        return memory
    except OSError:
        made.unlink(missing_ok=True)
        os.close(descriptor)
        raise


_lock = threading.Lock()
_ledgers: dict[str, Ledger] = {}
_here = Ledger(None)


def begin(node: str) -> Ledger:
    """The ledger of this process on the Ray node with this id, which is that of the whole process from now on."""
    global _here
    with _lock:
        if node not in _ledgers:
            _ledgers[node] = Ledger(_folder(node))
        _here = _ledgers[node]
        return _here


def here() -> Ledger:
    """The ledger of this process; before `begin` one in memory."""
    return _here


def _folder(node: str) -> Path | None:
    try:
        private_cache("counts")
        return private_cache(f"counts/{node}")
    except (OSError, ConfigError) as error:
        logger.warning("counts of this process are lost when it ends: %s", error)
        return None
