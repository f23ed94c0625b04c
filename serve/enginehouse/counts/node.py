"""The counts of a node: those of its processes that live, and of those that have ended, each once."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from enginehouse.counts.ledger import Ledger
from enginehouse.counts.rows import WIDTH, Key, Rows, ended, total

#: Seconds for which the counts of a node are kept that nobody reads and whose processes have all ended.
KEPT_S = 24 * 3600.0
#: Seconds to wait for another process that reads; it may have been stopped.
LOCK_S = 0.5
_DEAD, _LOCK = "dead.json", "lock"


class Told(NamedTuple):
    """All that was counted at a place, a node or a process without a folder, up to a time: more than at any earlier."""

    place: str
    at: int
    rows: Rows

    def plain(self) -> list[Any]:
        """As plain data; see `of`."""
        return [self.place, self.at, [[key, values] for key, values in self.rows.items()]]

    @classmethod
    def of(cls, plain: Any) -> Told:
        """From plain data. Raises ValueError or TypeError."""
        place, at, rows = plain
        return cls(str(place), int(at), {tuple(key): [int(value) for value in values] for key, values in rows})


def read(ledger: Ledger, node: str) -> Told:
    """What was counted on this node, whose id is `node`. Reads files. Raises OSError, TimeoutError among them."""
    if ledger.folder is None:
        # Nobody else knows of it.
        return Told(f"{node}/{ledger.process}", time.monotonic_ns(), ledger.rows())
    with _locked(ledger.folder):
        # After the lock: whoever had it before has told less.
        at = time.monotonic_ns()
        return Told(node, at, total(_rows(ledger.folder)))


def remove_left_over(ledger: Ledger) -> None:
    """Remove the folders of other nodes that were here once: of clusters that have ended."""
    for folder in ledger.folder.parent.iterdir() if ledger.folder else ():
        with contextlib.suppress(OSError):
            newest = max((path.stat().st_mtime for path in folder.iterdir()), default=folder.stat().st_mtime)
            if folder == ledger.folder or time.time() - newest < KEPT_S:
                continue
            if not any(_is_alive(path) for path in folder.glob("*.counts")):
                shutil.rmtree(folder, ignore_errors=True)


def _is_alive(file: Path) -> bool:
    """Whether the process lives whose file this is: it holds a lock on it. Raises FileNotFoundError."""
    descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def _rows(folder: Path) -> list[Rows]:
    """The rows of every process, and of the dead ones, whose files are removed."""
    dead = _dead(folder)
    folded = set(dead["folded"])
    rows: dict[Key, list[int]] = {tuple(key): values for key, values in dead["rows"]}
    living: list[Rows] = []
    left: dict[Path, Rows] = {}
    for file in folder.glob("*.counts"):
        if file.stem in folded:
            # Whoever added it was ended before it could remove it.
            _remove(file)
        elif _is_alive(file):
            living.append(_read(file))
        else:
            # Looked at after its end, so that nothing is added any more.
            left[file] = _read(file)
    if left:
        rows = total([rows, *map(ended, left.values())])
        document = {"folded": [file.stem for file in left], "rows": [[key, values] for key, values in rows.items()]}
        new = folder / f"{_DEAD}.new"
        new.write_bytes(orjson.dumps(document))
        new.replace(folder / _DEAD)
        for file in left:
            _remove(file)
    return [rows, *living]


def _dead(folder: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = orjson.loads((folder / _DEAD).read_bytes())
        return document
    except FileNotFoundError:
        return {"folded": [], "rows": []}


def _read(file: Path) -> Rows:
    # The names last: each row of the numbers has one then. A line that is not whole has nothing counted yet.
    numbers = memoryview(file.read_bytes())
    numbers = numbers[: len(numbers) // (8 * WIDTH) * 8 * WIDTH].cast("Q")
    try:
        names = file.with_suffix(".names").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        # It has just begun.
        names = []
    return {
        tuple(orjson.loads(name)): numbers[place * WIDTH : (place + 1) * WIDTH].tolist()
        for place, name in enumerate(names)
        if (place + 1) * WIDTH <= len(numbers)
    }


def _remove(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.with_suffix(".names").unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time. Raises TimeoutError after LOCK_S."""
    until = time.monotonic() + LOCK_S
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TimeoutError(f"{folder} is being read by another process") from None
                time.sleep(0.002)
        # So that it is not taken for one that nobody reads.
        os.utime(descriptor)
        yield
    finally:
        os.close(descriptor)
