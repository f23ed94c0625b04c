"""Builds one engine into the node's cache, in a process of its own.

    python -m enginehouse.engines.tensorrt.make       an order as JSON on stdin, `built` or `fault` as JSON on stdout

It ends with the process that asked for it. Of several for one key the first builds, and the others wait for it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

from enginehouse.contract.atomic_folder import locked, publish, staged
from enginehouse.contract.bundle import sha256_of
from enginehouse.contract.errors import EnginehouseError
from enginehouse.engines import worker_process
from enginehouse.engines.tensorrt.builder import build_engine
from enginehouse.engines.tensorrt.kept_engines import ENGINE_FILE, KEY_FILE, is_whole
from enginehouse.engines.tensorrt.key import EngineKey, Profile, Range


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


def _work() -> None:
    worker_process.begin(sys.argv)
    order = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w")
    # Libraries print to stdout as they please; the answer goes through the copy made above.
    os.dup2(2, 1)
    profile = {name: Range(*map(tuple, shapes)) for name, shapes in order["profile"].items()}
    try:
        built = make(Path(order["folder"]), Path(order["onnx"]), EngineKey(**order["key"]), profile)
        answer: dict[str, object] = {"built": built}
    except (EnginehouseError, OSError) as error:
        answer = {"fault": str(error)}
    answers.write(json.dumps(answer))
    answers.flush()


if __name__ == "__main__":
    _work()
