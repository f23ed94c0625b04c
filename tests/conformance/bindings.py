"""TensorRT's real Python bindings without TensorRT: its classes, methods and enums can be looked at, and no more.

The bindings are a small wheel of their own (tensorrt-cu13-bindings); the libraries they are linked with are not to be
had everywhere. Entry points that do nothing stand in for those, so that the module loads.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

_LIBRARIES = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
_ENTRY_POINTS = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
    *("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion"),
    *("getBuilderPluginRegistry", "getPluginRegistry", "initLibNvInferPlugins"),
)
#: Prints all names as nested objects. What a library has to do with is found when it is called, which nothing does.
_LOOK = """
import json, os, sys
sys.setdlopenflags(os.RTLD_LAZY)
import tensorrt_bindings

def names(owner):
    found = {name: getattr(owner, name) for name in dir(owner) if not name.startswith("_")}
    nested = {name: value for name, value in found.items() if isinstance(value, type) and value is not owner}
    return dict.fromkeys(found) | {name: names(value) for name, value in nested.items()}

print(json.dumps(names(tensorrt_bindings) | {"__version__": tensorrt_bindings.__version__}))
"""


def real_bindings(folder: Path) -> Any:
    """The names of the installed tensorrt-cu13-bindings as attributes; skips where they cannot be loaded."""
    if importlib.util.find_spec("tensorrt_bindings") is None:
        pytest.skip("tensorrt-cu13-bindings is not installed")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make the entry points that stand in for TensorRT's libraries")
    source = folder / "entry_points.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _ENTRY_POINTS))
    for library in _LIBRARIES:
        subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(folder / library)], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    looked = subprocess.run([sys.executable, "-c", _LOOK], env=environment, capture_output=True, text=True, check=False)
    assert looked.returncode == 0, looked.stderr
    return json.loads(looked.stdout, object_hook=lambda names: SimpleNamespace(**names))
