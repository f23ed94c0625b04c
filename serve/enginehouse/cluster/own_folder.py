"""The private folder of a local cluster, for HAProxy's files: gone at its end, or at the next start when it was killed.

The process that made a folder holds a lock on a file in it, which the system takes back however the process ends. So a
folder whose lock is free is left over; one without that file is not ours.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from enginehouse.contract.errors import ConfigError

_PREFIX = "eh-"
_OWNER = "owner"
#: Paths of Unix sockets end at 107 characters, and HAProxy's have 10 more while it starts. Below the folder, whose name
#: has some 12, are 70: the id of the node and a name.
_LONGEST_PARENT = 15


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """A folder that only this user may enter, short enough for sockets, for the context; dead servers' are removed.

    Raises ConfigError when there is no place for one.
    """
    parent = _parent()
    remove_left_over(parent)
    try:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        lock = _locked(folder)
    except OSError as error:
        raise ConfigError(
            f"no folder for sockets can be made in {parent}: {error.strerror}; set TMPDIR to one that can be written, "
            f"of at most {_LONGEST_PARENT} characters"
        ) from None
    try:
        with lock:
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_left_over(parent: Path) -> None:
    """Remove the folders of this user's local clusters in `parent` whose processes were killed."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            owner = folder / _OWNER
            if folder.is_symlink() or folder.stat().st_uid != os.getuid() or not owner.is_file():
                continue
            with owner.open() as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


def _parent() -> Path:
    usual = tempfile.gettempdir()
    return Path(usual if len(usual) <= _LONGEST_PARENT else "/tmp")


def _locked(folder: Path) -> IO[str]:
    # Under another name until it is locked: nobody may find it free before.
    made = folder / f"{_OWNER}.new"
    stream = made.open("w")
    fcntl.flock(stream, fcntl.LOCK_EX)
    stream.write(f"{os.getpid()}\n")
    stream.flush()
    made.rename(folder / _OWNER)
    return stream
