"""TensorRT itself: which flavour this process has, for which GPU, and what it says while it works."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from enginehouse.contract.errors import EngineUnavailable
from enginehouse.contract.manifest import EngineKind
from enginehouse.engines.hardware import probe_gpus
from enginehouse.engines.tensorrt.key import NodeFacts

KIND: EngineKind = "tensorrt"
RTX = "tensorrt-rtx"
#: Flavour (the distribution's name) -> the extra that installs it. The first one is preferred.
FLAVOURS: Mapping[str, str] = {"tensorrt": "trt", RTX: "trt-rtx"}


def library(flavour: str) -> Any:
    """The Python module of a flavour. Raises EngineUnavailable."""
    if flavour not in FLAVOURS:
        raise EngineUnavailable(KIND, f"flavour {flavour!r} is not known; the flavours are {', '.join(FLAVOURS)}")
    try:
        return importlib.import_module(flavour.replace("-", "_"))
    except (ImportError, OSError) as error:
        raise EngineUnavailable(KIND, f"{error}; install enginehouse[{FLAVOURS[flavour]}]") from None


def installed_flavour(preferred: str = "") -> str:
    """`preferred` if it is installed here, else the first flavour that is. Raises EngineUnavailable."""
    missing = []
    for flavour in sorted(FLAVOURS, key=lambda flavour: flavour != preferred):
        try:
            library(flavour)
        except EngineUnavailable as error:
            missing.append(str(error.args[1]))
        else:
            return flavour
    raise EngineUnavailable(KIND, "; ".join(missing))


def local_node(preferred: str = "") -> NodeFacts:
    """What this process would run an engine with. Raises EngineUnavailable without a GPU, TensorRT or cuda-bindings."""
    gpus = probe_gpus()
    if not gpus.devices:
        raise EngineUnavailable(KIND, gpus.reason)
    flavour = installed_flavour(preferred)
    try:
        importlib.import_module("cuda.bindings.runtime")
    except (ImportError, OSError) as error:
        raise EngineUnavailable(KIND, f"{error}; install enginehouse[{FLAVOURS[flavour]}]") from None
    return NodeFacts(flavour, str(library(flavour).__version__), gpus.devices[0].compute_capability)


def listener(trt: Any) -> Any:
    """A logger for TensorRT that keeps the latest `errors` and the first `warnings` instead of printing them."""

    class Listener(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            # pybind11 refuses an object whose base was not initialised by name.
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors[:-9] = []
                self.errors.append(text)
            elif severity == trt.ILogger.Severity.WARNING and len(self.warnings) < 100:
                self.warnings.append(text)

    return Listener()


def readable(text: str) -> str:
    """A message of TensorRT on one line, without the places in its own source, at most 400 characters."""
    text = " ".join(text.split())
    text = re.sub(r"IBuilder::\w+: |Error Code \d+: |\[\w+\.(?:cpp|h)\b[^\]]*\] ?", "", text)
    text = re.sub(r" ?In \S+ at /\S+?:\d+", "", text).replace("( ", "(")
    return text if len(text) <= 400 else text[:400] + "..."


def told(errors: Iterable[str]) -> str:
    """What went wrong, from messages in the order they came: the first ones are the cause."""
    return " | ".join([readable(text) for text in errors][:2]) or "TensorRT gave no reason"
