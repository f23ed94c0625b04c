"""An environment for each peer, with the versions that its requirements.txt and constraints.txt pin."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from benchmarks.peers import HERE, Contestant, NotRun, Peer

ENVIRONMENTS = HERE.parent / ".envs"
_CONSTRAINTS = HERE.parent.parent / "constraints.txt"
_TIMEOUT_S = 1800


def python_of(contestant: Contestant, making: Callable[[], None]) -> Path:
    """The Python that runs `contestant`; `making` is called before its environment is made. Raises NotRun."""
    if not isinstance(contestant, Peer):
        return Path(sys.executable)
    if contestant.needs and not shutil.which(contestant.needs):
        raise NotRun(f"{contestant.needs} is not installed")
    folder = ENVIRONMENTS / contestant.name
    python = folder / "bin" / "python"
    requirements = HERE / contestant.name / "requirements.txt"
    wanted = hashlib.sha256(requirements.read_bytes() + _CONSTRAINTS.read_bytes() + sys.version.encode()).hexdigest()
    done = folder / ".installed"
    if done.exists() and done.read_text() == wanted:
        return python
    making()
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(folder)])
    _run([str(python), "-m", "pip", "install", "--progress-bar", "off", "-r", str(requirements)])
    done.write_text(wanted)
    return python


def version_of(contestant: Contestant) -> str:
    """The installed version of what `contestant` is; empty when it is not installed."""
    if not isinstance(contestant, Peer):
        return metadata.version(contestant.package)
    paths = [str(path) for path in (ENVIRONMENTS / contestant.name).glob("lib/python*/site-packages")]
    return next((found.version for found in metadata.distributions(name=contestant.package, path=paths)), "")


def _run(command: list[str]) -> None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise NotRun(f"`{' '.join(command[1:4])}` took more than {_TIMEOUT_S} s") from None
    if result.returncode:
        said = (result.stderr or result.stdout).strip().splitlines()
        errors = [line for line in said if line.startswith("ERROR")] or said[-1:] or [f"code {result.returncode}"]
        raise NotRun(f"cannot be installed: {errors[-1]}")
