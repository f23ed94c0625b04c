"""The models that are measured, and requests for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TypeAlias

import numpy as np
from examples import digits, encoder, resnet

from benchmarks.gpu.lab import Lab, NotRun
from enginehouse.contract.bundle import Bundle
from enginehouse.contract.errors import EnginehouseError
from enginehouse.contract.manifest import EngineKind, Precision
from enginehouse.contract.store import Store
from enginehouse.engines import Engine, load_engine

Request: TypeAlias = dict[str, np.ndarray]

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
#: Formats that are built. The digits also have another CPU engine, to have a second backend where there is no GPU.
_FORMATS = {"digits": "onnx,openvino", "encoder": "onnx", "resnet50": "onnx"}
_SOURCES = {
    "digits": "examples.digits:digits",
    "encoder": "examples.encoder:encoder",
    "resnet50": "examples.resnet:resnet50",
}


def is_built(lab: Lab, model: str) -> bool:
    """Whether the store has it."""
    return bool(Store(str(lab.store)).versions(model))


def build(lab: Lab, model: str) -> None:
    """Build it as a user would, in all precisions. Raises NotRun with what the build said."""
    command = [
        sys.executable,
        "-m",
        "enginehouse",
        "build",
        _SOURCES[model],
        "--name",
        model,
        "--store",
        str(lab.store),
    ]
    command += ["--precisions", ",".join(PRECISIONS), "--formats", _FORMATS[model]]
    # The CPU's latency tables are not what is looked for: with so little time for a step they are short ones.
    command += ["--step-timeout", str(lab.sized(120, 60)), "--max-batch", str(lab.sized(32, 8))]
    done = subprocess.run(command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout)
    if done.returncode:
        raise NotRun(f"`enginehouse build` failed: {done.stdout.strip().splitlines()[-1]}")


def bundle(lab: Lab, model: str) -> Bundle:
    """Its newest version. Raises NotRun when the store has none."""
    if not is_built(lab, model):
        raise NotRun(f"{lab.store} has no {model}; the part `build` makes it")
    store = Store(str(lab.store))
    return store.open(model, store.latest(model))


def engine(lab: Lab, model: str, precision: str, kind: EngineKind | None = None) -> Engine:
    """The engine of an ONNX artifact, for one caller. Raises NotRun when it is not there or cannot be loaded."""
    opened = bundle(lab, model)
    try:
        artifact = opened.manifest.artifact(f"onnx-{precision}")
        return load_engine(kind or lab.kind, opened, artifact, threads=lab.threads, warm_rows=1)
    except EnginehouseError as error:
        raise NotRun(str(error)) from None


def onnx_file(lab: Lab, model: str, precision: str) -> Path:
    """The ONNX file of a precision. Raises NotRun."""
    opened = bundle(lab, model)
    try:
        files = opened.verified_files(opened.manifest.artifact(f"onnx-{precision}"))
    except EnginehouseError as error:
        raise NotRun(str(error)) from None
    return next(file for file in files if file.suffix == ".onnx")


def request(model: str, rows: int) -> Request:
    """Real inputs: digits, photographs, or sentences of the usual length."""
    if model == "encoder":
        return encoder.sentences(rows)
    images = digits.held_out()[0] if model == "digits" else resnet.photographs(min(rows, 64))
    return {"image": np.ascontiguousarray(np.take(images, np.arange(rows), axis=0, mode="wrap"))}
