"""Folders and files that other users of this machine can neither read nor put something in the place of.

The mode is set whatever the umask is. What another user made where ours should be is never used.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from enginehouse.contract.errors import ConfigError


def private_folder(folder: Path) -> Path:
    """`folder`, made where it is missing, that only this user may enter.

    Raises ConfigError where it belongs to another user, and OSError where it cannot be made. One of root's is taken as
    it is: root made it for us, as containers do.
    """
    for parent in reversed(folder.parents):
        with contextlib.suppress(FileExistsError):
            if not parent.exists():
                parent.mkdir(mode=0o700)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    return tightened(folder)


def tightened(path: Path) -> Path:
    """`path`, a folder or a file that is there, that others have no rights to. Raises as `private_folder`."""
    # A link is its maker's, wherever it leads.
    owners = {path.lstat().st_uid, path.stat().st_uid}
    if strangers := owners - {os.getuid(), 0}:
        raise ConfigError(
            f"{path} belongs to another user (uid {strangers.pop()}), who could read and replace what is in it; "
            "remove it or choose another place"
        )
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077 and path.stat().st_uid == os.getuid():
        path.chmod(mode & 0o700)
    return path


def put_private(path: Path, text: str) -> bool:
    """Write a file that only this user may read, whole or not at all; False where there is one, which stays."""
    made = _made_beside(path, text)
    try:
        os.link(made, path)
    except FileExistsError:
        return False
    finally:
        made.unlink()
    return True


def replace_private(path: Path, text: str) -> None:
    """As `put_private`, in the place of what is there."""
    _made_beside(path, text).replace(path)


def _made_beside(path: Path, text: str) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(text)
    except BaseException:
        Path(name).unlink()
        raise
    return Path(name)


def exposed(path: Path) -> list[str]:
    """What users other than its owner and root can do with `path`: `read`, `write`, `replace`; raises OSError."""
    owners = {0, path.stat().st_uid}
    found = set()
    for folder in reversed(path.absolute().parents):
        there = folder.stat()
        if there.st_uid not in owners or (there.st_mode & 0o002 and not there.st_mode & stat.S_ISVTX):
            found.add("replace")
        if not there.st_mode & 0o001:
            return sorted(found)
    mode = path.stat().st_mode
    found |= {what for what, bits in (("read", 0o044), ("write", 0o022)) if mode & bits}
    return sorted(found)
