"""The file of tokens: YAML, and so JSON too, that only who serves may read.

    tokens:
    - name: shop
      token: 0b1c...           # or `sha256:` of it (printf %s "$TOKEN" | sha256sum)
      roles: [infer, read]
      models: [digits, resnet*]
      requests_per_s: 50
      rows_per_s: 2000

No error of this module quotes the file.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from enginehouse.contract.config.access import CallerConfig, digest
from enginehouse.contract.errors import ConfigError

#: What HTTP allows in a bearer token (RFC 6750), and so many characters that it cannot be found by trying: only then
#: does its sha256 say nothing.
_TOKEN = re.compile(r"[\w.~+/-]{22,512}=*", re.ASCII)
MOST_BYTES = 4 << 20


def read(path: Path) -> tuple[CallerConfig, ...]:
    """The entries of the file, with hashes in the place of tokens. Raises ConfigError."""
    import yaml

    text = _text(path)
    try:
        # Without its text, which would be quoted, and with no `from`, which would be shown.
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(f"{path} is no YAML{f', line {mark.line + 1}' if mark else ''}") from None
    entries = document.get("tokens") if isinstance(document, dict) and document.keys() == {"tokens"} else None
    if not isinstance(entries, list):
        raise ConfigError(f"{path} has to be a list under `tokens:`, of entries with name, token and roles")
    callers = tuple(_entry(path, place, entry) for place, entry in enumerate(entries, 1))
    for what in ("name", "sha256"):
        values = [getattr(caller, what) for caller in callers]
        for place, value in enumerate(values, 1):
            if value in values[: place - 1]:
                shown = f" {value!r}" if what == "name" else ""
                raise ConfigError(f"{path}: entry {place} has the {'name' if shown else 'token'}{shown} of one before")
    return callers


def signature(path: Path) -> tuple[int, ...]:
    """What changes when the file does; empty where it is not there."""
    try:
        there = path.stat()
    except OSError:
        return ()
    return there.st_mtime_ns, there.st_ctime_ns, there.st_size, there.st_ino


def _text(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            there = os.fstat(file.fileno())
            mode = stat.S_IMODE(there.st_mode)
            if there.st_uid not in (os.getuid(), 0):
                raise ConfigError(f"{path} belongs to another user (uid {there.st_uid}); copy it, and chmod 600 it")
            if mode & 0o077:
                raise ConfigError(f"{path} has mode {mode:04o}: other users could read the tokens; chmod 600 {path}")
            text = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or type(error).__name__}") from None
    if len(text) > MOST_BYTES:
        raise ConfigError(f"{path} is larger than {MOST_BYTES >> 20} MiB")
    return text


def _entry(path: Path, place: int, entry: Any) -> CallerConfig:
    where = f"{path}: entry {place}"
    if not isinstance(entry, dict) or ("token" in entry) == ("sha256" in entry):
        raise ConfigError(f"{where} needs name, roles, and either token or sha256")
    known = {key: value for key, value in entry.items() if key != "token"}
    if "token" in entry:
        token = entry["token"]
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise ConfigError(
                f"{where}: token is not 22 to 512 letters, digits and -._~+/ as text, which nobody could guess; make "
                "one with `openssl rand -hex 32`, in quotes"
            )
        known["sha256"] = digest(token)
    try:
        return CallerConfig.model_validate(known)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        # A key may be what was meant as a value.
        field = first["loc"][0] if first["loc"] and first["loc"][0] in CallerConfig.model_fields else "a key"
        told = first["msg"] if field != "a key" else f"is none of {', '.join((*CallerConfig.model_fields, 'token'))}"
        raise ConfigError(f"{where}: {field}: {told}") from None
