"""Record of the engines that crashed a process of this node: a fatal signal came while they loaded or computed.

    CACHE/crashes/<pid>-<start>-<host>.running   memory map of a live process: per engine its flag, its id and the
                                                 thread that uses it, of several one
    CACHE/crashes/<pid>-<start>-<host>.trace     what faulthandler wrote when the process crashed; empty until then
    CACHE/crashes/<engine>.crashed               an engine whose flag was set when its process crashed, and the signal;
                                                 on further lines what else its trace said

A process writes the first two; the next one to start on the node, or a router that looks, turns those of dead processes
into the third. Where the trace names a thread that used one of them, that one is blamed, otherwise all that were in
use. After SIGKILL the trace is empty, so no engine is blamed.

Where the cache folder takes no more, they are in a folder of the process itself, from which no later process learns;
and where that does not either, nothing is recorded: a record is no reason to die.
"""

from __future__ import annotations

import faulthandler
import hashlib
import logging
import mmap
import os
import re
import socket
import tempfile
import threading
import time
from enum import Enum
from pathlib import Path

import psutil

from enginehouse.contract.bundle import MANIFEST
from enginehouse.contract.errors import ConfigError
from enginehouse.contract.manifest import Artifact, EngineKind
from enginehouse.contract.store.cache import private_cache

logger = logging.getLogger("ray.serve")

#: Seconds for which an engine is blamed after a crash; its runtime may have been replaced by then.
FORGET_AFTER_S = 24 * 3600.0
#: Bytes of an engine's slot in the memory map (flag, engine id, thread), number of slots, and where the thread is.
_SLOT, _SLOTS, _THREAD = 64, 1024, 56
_BYTES = _SLOT * _SLOTS
#: The function in whose thread isolated calls are computed, by its name in a trace.
ISOLATED_CALL = "run_alone"


class Flag:
    """Marks an engine as in use, in `with` statements of any threads. Every call is marked: it costs nine bytes."""

    def __init__(self, memory: mmap.mmap, offset: int) -> None:
        self._memory = memory
        self._offset = offset
        self._lock = threading.Lock()
        self._threads: list[int] = []

    def __enter__(self) -> None:
        with self._lock:
            self._threads.append(threading.get_ident())
            self._mark()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads.remove(threading.get_ident())
            self._mark()

    def _mark(self) -> None:
        thread = self._threads[-1] if self._threads else 0
        self._memory[self._offset + _THREAD : self._offset + _SLOT] = thread.to_bytes(8, "little")
        self._memory[self._offset] = int(bool(self._threads))


class Crashes:
    """Crash record of this process in `folder`. Creating it reads and removes the files of dead processes.

    Without a folder nothing is recorded. Raises OSError where the record would have no room.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        #: Of the files of this process, without their suffix; "" where there are none.
        self.path = ""
        self._used = 0
        if folder is None:
            self._memory = mmap.mmap(-1, _BYTES)
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.collect()
        own = folder / f"{os.getpid()}-{psutil.Process().create_time():.0f}-{_host()}"
        self.path = str(own)
        self._memory = _mapped(own.with_suffix(".running"))
        # Open for the life of the process: faulthandler's signal handler writes to it.
        self._trace = own.with_suffix(".trace").open("w")
        # The handler that Ray installed is called after this one, so Ray's log has its trace too.
        faulthandler.enable(self._trace)

    def flag(self, engine: str) -> Flag:
        """Flag of an engine that this process loads; `engine` is an `engine_id`."""
        with _lock:
            # Models are loaded side by side.
            offset = self._used * _SLOT
            self._used = (self._used + 1) % _SLOTS
        self._memory[offset : offset + 1 + len(engine)] = b"\0" + engine.encode()
        return Flag(self._memory, offset)

    def of(self, engine: str) -> str:
        """Text about the last crash of an engine on this node; empty when there was none within FORGET_AFTER_S."""
        if self._folder is None:
            return ""
        path = self._folder / f"{engine}.crashed"
        try:
            if time.time() - path.stat().st_mtime > FORGET_AFTER_S:
                return ""
            return path.read_text().partition("\n")[0]
        except OSError:
            return ""

    def collect(self) -> None:
        """Take note of the crashes of processes of this node that have died since."""
        for running in self._folder.glob("*.running") if self._folder else ():
            # The folder may be shared: whether another host's process lives is unknown.
            if not running.stem.endswith(f"-{_host()}") or _is_alive(running.stem):
                continue
            trace = running.with_suffix(".trace")
            # Atomic, so that of several starting processes exactly one reads it.
            mine = running.with_suffix(f".read-by-{os.getpid()}")
            try:
                running.rename(mine)
                memory, text = mine.read_bytes(), trace.read_text() if trace.exists() else ""
            except OSError:
                continue
            for engine in _blamed(memory, text) if text.strip() else ():
                when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(mine.stat().st_mtime))
                crash = f"{_who(running.stem)} at {when} UTC: {text}"
                try:
                    running.with_name(f"{engine}.crashed").write_text(crash)
                except OSError as error:
                    logger.warning("%s %s, which cannot be recorded: %s", engine, crash.splitlines()[0], error)
            mine.unlink(missing_ok=True)
            trace.unlink(missing_ok=True)


_lock = threading.Lock()
_records: list[Crashes] = []


def of_this_process() -> Crashes:
    """The one record of this process, made at the first call.

    In a temporary folder if the cache folder cannot be written: then no later process learns of a crash.
    """
    with _lock:
        if not _records:
            _records.append(_recorded())
        return _records[0]


def _recorded() -> Crashes:
    try:
        return Crashes(private_cache() / "crashes")
    except (OSError, ConfigError) as error:
        logger.warning("crashes are not recorded for later processes: %s", error)
    try:
        return Crashes(Path(tempfile.mkdtemp(prefix="enginehouse-")))
    except OSError as error:
        logger.warning("crashes are not recorded at all: %s", error)
    return Crashes(None)


def _mapped(path: Path) -> mmap.mmap:
    """A new file as memory, zeros. Raises OSError where the disk has no room for all of it."""
    try:
        with path.open("w+b") as file:
            # Not `truncate`: pages of a sparse file take room when they are written, and on a full disk that is SIGBUS.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, _BYTES)
            else:
                file.write(bytes(_BYTES))
                file.flush()
            return mmap.mmap(file.fileno(), _BYTES)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _blamed(memory: bytes, trace: str) -> list[str]:
    """The engines in use that the current thread of `trace` used; all in use where it used none, or none is named."""
    slots = (memory[start : start + _SLOT] for start in range(0, len(memory), _SLOT))
    used = [(slot[1:_THREAD], int.from_bytes(slot[_THREAD:], "little")) for slot in slots if slot[0]]
    found = re.search(r"^Current thread 0x([0-9a-f]+)", trace, re.MULTILINE)
    current = int(found[1], 16) if found else 0
    blamed = [name for name, thread in used if thread == current] or [name for name, _ in used]
    return [name.rstrip(b"\0").decode() for name in blamed]


def path_here() -> str:
    """`path` of the record of this process; "" before it has one."""
    return _records[0].path if _records else ""


class Death(Enum):
    """How a process ended: by a fatal signal in an isolated call, in another thread of Python's, or in an unknown one;
    or without one, as by SIGKILL, or nobody here knows."""

    IN_ISOLATED_CALL = "a fatal signal in this call"
    ELSEWHERE = "a fatal signal in another thread"
    SOMEWHERE = "a fatal signal"
    UNKNOWN = "no fatal signal that is known of"


def death_of(path: str) -> Death:
    """How a process of this host ended, given the `path` of its record; UNKNOWN for another host's. Reads files."""
    record = Path(path)
    if not path or not record.name.endswith(f"-{_host()}"):
        return Death.UNKNOWN
    trace = _text(record.with_suffix(".trace"))
    if trace is None:
        # Somebody has taken note of it meanwhile.
        texts = filter(None, map(_text, record.parent.glob("*.crashed")))
        trace = next((text for text in texts if text.startswith(f"{_who(record.name)} ")), "")
    if not trace:
        return Death.UNKNOWN
    # Threads that an engine library has made are none of Python's: then no thread is called the current one.
    _, names_it, threads = trace.partition("Current thread ")
    if not names_it:
        return Death.SOMEWHERE
    return (
        Death.IN_ISOLATED_CALL if f" in {ISOLATED_CALL}\n" in threads.partition("\n\n")[0] + "\n" else Death.ELSEWHERE
    )


def engine_id(folder: Path, kind: EngineKind, artifact: Artifact) -> str:
    """Identity of an engine across processes: a hash of the bundle's manifest, the engine kind and the artifact."""
    manifest = (folder / MANIFEST).read_bytes()
    return hashlib.sha256(b"\0".join([manifest, kind.encode(), artifact.name.encode()])).hexdigest()[:32]


def _text(file: Path) -> str | None:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return None


def _who(stem: str) -> str:
    return f"crashed process {stem.partition('-')[0]}"


def _host() -> str:
    return socket.gethostname().replace(".", "_")


def _is_alive(stem: str) -> bool:
    pid, started, _ = stem.split("-", 2)
    try:
        return f"{psutil.Process(int(pid)).create_time():.0f}" == started
    except (psutil.Error, ValueError):
        return False
