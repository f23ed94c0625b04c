"""Whether the file that a command is to write can be written, asked before the work is done."""

from __future__ import annotations

import os
from pathlib import Path

from enginehouse.contract.errors import ConfigError


def check_output(path: Path, option: str) -> None:
    """Raises ConfigError naming `path` and the `option` that it was given with."""
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path.parent} is no folder; {option} {path.name} needs one that exists")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; {option} names a file")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise ConfigError(f"{path} cannot be written; choose another {option}")
