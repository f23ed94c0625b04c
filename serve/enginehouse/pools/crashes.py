"""Which engines have crashed a process of this node: what a process was computing when a fatal signal ended it.

    CACHE/crashes/<pid>-<start>-<host>.running   a flag per engine of a live process: whether it is in a call
    CACHE/crashes/<pid>-<start>-<host>.trace     what Python's faulthandler wrote when the process crashed; else empty
    CACHE/crashes/<engine>.crashed               an engine that was in a call then

A process that was merely killed (SIGKILL) leaves no trace, so its engines are not suspected.
"""

from __future__ import annotations

import faulthandler
import hashlib
import logging
import mmap
import os
import socket
import tempfile
import threading
import time
from pathlib import Path

import psutil

from enginehouse.contract.bundle import MANIFEST
from enginehouse.contract.manifest import Artifact, EngineKind
from enginehouse.contract.store.cache import cache_folder

logger = logging.getLogger("ray.serve")

#: An engine is no longer suspected after this long; the model may have a new runtime by then.
FORGET_AFTER_S = 24 * 3600.0
_SLOT, _SLOTS = 64, 1024


class Flag:
    """Set while its engine computes: `with flag: ...`. Costs a byte written, so every call is marked."""

    def __init__(self, memory: mmap.mmap, place: int) -> None:
        self._memory = memory
        self._place = place

    def __enter__(self) -> None:
        self._memory[self._place] = 1

    def __exit__(self, *_: object) -> None:
        self._memory[self._place] = 0


class Crashes:
    """The record of this process, and what dead processes left in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._read_the_dead()
        own = folder / f"{os.getpid()}-{psutil.Process().create_time():.0f}-{_host()}"
        with own.with_suffix(".running").open("w+b") as file:
            file.truncate(_SLOT * _SLOTS)
            self._memory = mmap.mmap(file.fileno(), _SLOT * _SLOTS)
        self._used = 0
        # Kept open for as long as the process lives: written by a signal handler.
        self._trace = own.with_suffix(".trace").open("w")
        # Ray's own handler is called after this one, so its log says as much as before.
        faulthandler.enable(self._trace)

    def flag(self, engine: str) -> Flag:
        """A flag for an engine that this process loads; `engine` is an `engine_id`."""
        place = self._used * _SLOT
        self._used = (self._used + 1) % _SLOTS
        self._memory[place : place + 1 + len(engine)] = b"\0" + engine.encode()
        return Flag(self._memory, place)

    def of(self, engine: str) -> str:
        """When and in what an engine crashed a process of this node; empty when it did not, or long ago."""
        path = self._folder / f"{engine}.crashed"
        try:
            if time.time() - path.stat().st_mtime > FORGET_AFTER_S:
                return ""
            return path.read_text()
        except OSError:
            return ""

    def _read_the_dead(self) -> None:
        for running in self._folder.glob("*.running"):
            # Others may share the folder, whose processes cannot be seen from here.
            if not running.stem.endswith(f"-{_host()}") or _is_alive(running.stem):
                continue
            trace = running.with_suffix(".trace")
            # Of several processes that start now one gets to read it.
            mine = running.with_suffix(f".read-by-{os.getpid()}")
            try:
                running.rename(mine)
                memory, text = mine.read_bytes(), trace.read_text() if trace.exists() else ""
            except OSError:
                continue
            slots = [memory[start : start + _SLOT] for start in range(0, len(memory), _SLOT)]
            for slot in slots if text.strip() else ():
                if slot[0]:
                    engine = slot[1:].rstrip(b"\0").decode()
                    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(mine.stat().st_mtime))
                    said = f"crashed process {running.stem.partition('-')[0]} at {when} UTC: {text.splitlines()[0]}"
                    (self._folder / f"{engine}.crashed").write_text(said)
            mine.unlink(missing_ok=True)
            trace.unlink(missing_ok=True)


_lock = threading.Lock()
_records: list[Crashes] = []


def of_this_process() -> Crashes:
    """The record of this process, begun at the first call; where the cache cannot be written it outlives nobody."""
    with _lock:
        if not _records:
            try:
                _records.append(Crashes(cache_folder() / "crashes"))
            except OSError as error:
                logger.warning("crashes are not recorded: %s", error)
                _records.append(Crashes(Path(tempfile.mkdtemp(prefix="enginehouse-"))))
        return _records[0]


def engine_id(folder: Path, kind: EngineKind, artifact: Artifact) -> str:
    """What makes an engine the same one in another process: its bundle's manifest, its kind and its artifact."""
    manifest = (folder / MANIFEST).read_bytes()
    return hashlib.sha256(b"\0".join([manifest, kind.encode(), artifact.name.encode()])).hexdigest()[:32]


def _host() -> str:
    return socket.gethostname().replace(".", "_")


def _is_alive(stem: str) -> bool:
    pid, started, _ = stem.split("-", 2)
    try:
        return f"{psutil.Process(int(pid)).create_time():.0f}" == started
    except (psutil.Error, ValueError):
        return False
