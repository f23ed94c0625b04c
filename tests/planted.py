"""Python files that lie about in a folder, named as packages that we import, and say so when they run."""

from __future__ import annotations

import re
from pathlib import Path

#: What is imported late in a build, in a replica, by Ray or by an engine library.
NAMES = (
    *("psutil", "numpy", "onnx", "onnxruntime", "openvino", "torch", "orjson", "pydantic", "rich", "typer", "fsspec"),
    *("ray", "starlette", "fastapi", "uvicorn", "aiohttp", "grpc", "msgpack", "yaml", "httpx", "nncf", "scipy", "six"),
    *("json", "random", "uuid", "tempfile", "sitecustomize", "usercustomize", "enginehouse_build", "ml_dtypes"),
)


def plant(folder: Path, names: tuple[str, ...] = NAMES) -> Path:
    """Put them into `folder`; the file that they write to when they run."""
    ran = folder.parent / f"ran-from-{folder.name}"
    for name in names:
        (folder / f"{name}.py").write_text(
            f"import sys\nwith open({str(ran)!r}, 'a') as stream:\n"
            f"    print({name!r}, sys.argv, file=stream)\nraise ImportError('planted')\n"
        )
    return ran


def those_that_ran(ran: Path) -> set[str]:
    """The names of those that ran."""
    return set(re.findall(r"^\w+", ran.read_text(), re.MULTILINE)) if ran.exists() else set()
