"""What Ray and we keep in the user's home and in the folder for temporary files, and where it goes without them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

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
    if os.environ.get(_TOKEN) or os.environ.get(TOKEN_FILE):
        return True
    kept = os.environ.get("HOME")
    return bool(kept) and (Path(kept or "") / ".ray" / "auth_token").is_file()


def without_home(folder: Path) -> dict[str, str]:
    """Variables with which a local cluster finds in `folder` what it has no home for; makes the token there."""
    if home():
        return {}
    found = {"ENGINEHOUSE_CACHE": str(folder / "cache")}
    if not has_token():
        token = folder / "auth_token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        found[TOKEN_FILE] = str(token)
    return found


def ray_folder(environment: Mapping[str, str] = os.environ) -> str | None:
    """Where Ray is to put its sessions; None for where it does by itself."""
    chosen = environment.get("RAY_TMPDIR") or environment.get("TMPDIR")
    if chosen is None or (len(chosen) <= _LONGEST_TEMPORARY and _can_be_written(Path(chosen))):
        return None
    return f"{_USUAL}/ray"


def _can_be_written(folder: Path) -> bool:
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
