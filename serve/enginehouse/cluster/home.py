"""What Ray and we keep in the user's home and in the folder for temporary files, and where it goes without them."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from enginehouse.contract.errors import ConfigError
from enginehouse.contract.store.private import exposed, private_folder, put_private, tightened

_TOKEN, TOKEN_FILE = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
#: Ray adds `/ray/session_DATE_TIME_PID/sockets/plasma_store`, and the paths of Unix sockets end at 107 characters.
_LONGEST_TEMPORARY = 35
#: Where Ray puts its sessions when nothing says otherwise.
_USUAL = "/tmp"


def home() -> Path | None:
    """The user's home, if there is one that can be written."""
    # Ray looks for HOME alone; Python would ask the system too.
    folder = Path(os.environ.get("HOME") or "-")
    return folder if folder.is_absolute() and folder.is_dir() and os.access(folder, os.W_OK | os.X_OK) else None


def has_token() -> bool:
    """Whether Ray finds a token to connect with."""
    if token_is_given():
        return True
    kept = os.environ.get("HOME")
    return bool(kept) and (Path(kept or "") / ".ray" / "auth_token").is_file()


def token_is_given() -> bool:
    """Whether the environment says which token it is."""
    return bool(os.environ.get(_TOKEN) or os.environ.get(TOKEN_FILE))


def without_home(folder: Path) -> dict[str, str]:
    """Variables with which a local cluster finds in `folder` what it has no home for; makes the token there."""
    if home():
        return {}
    found = {"ENGINEHOUSE_CACHE": str(folder / "cache")}
    if not has_token():
        token = folder / "auth_token"
        put_private(token, secrets.token_hex(32))
        found[TOKEN_FILE] = str(token)
    return found


def private_token() -> None:
    """Make the token of the user's home, or take other users' rights to it away: Ray leaves it readable to all.

    A token that is given otherwise is left alone. Raises ConfigError where another user made it, or its folder.
    """
    folder = home()
    if token_is_given() or folder is None:
        return
    try:
        token = private_folder(folder / ".ray") / "auth_token"
        if not put_private(token, secrets.token_hex(32)):
            tightened(token)
    except OSError as error:
        raise ConfigError(f"no token can be kept in {folder / '.ray'}: {error.strerror}") from None


def ray_folder(own: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """Where Ray is to put its sessions: a private folder of this user, that the logs stay in, else `own`.

    Ray has every user write to the folders that it makes; so they are inside of one that others cannot enter.
    """
    chosen = Path(environment.get("RAY_TMPDIR") or environment.get("TMPDIR") or _USUAL)
    parent = chosen if len(str(chosen)) <= _LONGEST_TEMPORARY and _can_be_written(chosen) else Path(_USUAL)
    if _is_private(parent):
        return parent / "ray"
    below = parent / f"ray-{os.getuid()}"
    with contextlib.suppress(ConfigError, OSError):
        if len(str(below)) <= _LONGEST_TEMPORARY:
            return private_folder(below) / "ray"
        return private_folder(Path(_USUAL) / below.name) / "ray"
    # Another user has taken that name.
    return own / "ray"


def _is_private(folder: Path) -> bool:
    try:
        there = folder.stat()
        return there.st_uid == os.getuid() and not there.st_mode & 0o077 and not exposed(folder)
    except OSError:
        return False


def _can_be_written(folder: Path) -> bool:
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
