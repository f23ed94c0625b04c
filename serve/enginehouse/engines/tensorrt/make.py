"""Builds one engine into the node's cache, in a process of its own.

    python -m enginehouse.engines.tensorrt.make ...       takes the arguments of `make`, answers with its result

It ends with the process that asked for it. Of several for one key the first builds, and the others wait for it.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from enginehouse.contract.bundle import sha256_of
from enginehouse.contract.errors import ConfigError
from enginehouse.contract.store.atomic_folder import locked, publish, staged
from enginehouse.engines.tensorrt.builder import build_engine
from enginehouse.engines.tensorrt.kept_engines import ENGINE_FILE, KEY_FILE, is_whole
from enginehouse.engines.tensorrt.key import EngineKey, Profile
from enginehouse.engines.worker_process import Parent, serve


def make(folder: Path, onnx: Path, key: EngineKey, profile: Profile) -> bool:
    """Build into `folder` all at once; False when another process did so in the meantime.

    Raises what `build_engine` raises, and OSError for a cache that cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f"{folder.name}.lock")):
        if is_whole(folder):
            return False
        began = time.monotonic()
        timings = folder.with_name(f"{key.flavour}-{key.version}-{key.compute_capability}.timings")
        built = build_engine(onnx, profile, key.flavour, (key.compute_capability,), timings)
        with staged(folder.parent) as part:
            engine = part / ENGINE_FILE
            engine.write_bytes(built.engine)
            made = {
                "key": key.record(),
                "sha256": sha256_of(engine),
                "seconds": time.monotonic() - began,
                "remarks": built.remarks,
            }
            (part / KEY_FILE).write_text(json.dumps(made, indent=2) + "\n")
            # Nothing, or what was damaged since.
            shutil.rmtree(folder, ignore_errors=True)
            return publish(part, folder)


def _work(parent: Parent) -> None:
    try:
        parent.send(make(*parent.receive()))
    except OSError as error:
        raise ConfigError(f"the engine cannot be kept: {error}") from None


if __name__ == "__main__":
    serve(_work)
