"""What every engine promises, and the names of the bindings: the repository's own tests, on this hardware."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu.lab import Lab, NotRun, Row, tried
from enginehouse.contract.errors import EngineUnavailable
from enginehouse.engines.tensorrt.library import FLAVOURS, installed_flavour, local_node

_ROOT = Path(__file__).parents[3]
_ENGINES = "tests/conformance/test_engines.py"


def run(lab: Lab) -> Iterator[Row]:
    """A row for each suite, and one for each test that failed."""
    yield from _suite(lab, lab.kind, _ENGINES, "-k", lab.kind)
    for flavour in FLAVOURS:
        row = tried({"suite": flavour}, partial(_loads, flavour))
        if len(row) > 1:
            yield row
        else:
            yield from _suite(lab, flavour, _ENGINES, "-k", "tensorrt")
    yield from _suite(
        lab, "names of the bindings", "tests/conformance/test_tensorrt.py", "tests/conformance/test_names.py"
    )


def _loads(flavour: str) -> Row:
    """Raises NotRun where this process cannot run engines of that flavour."""
    try:
        local_node(flavour)
        if (first := installed_flavour()) != flavour:
            raise NotRun(f"{first} is installed too, and goes before it")
    except EngineUnavailable as error:
        raise NotRun(str(error)) from None
    return {}


def _suite(lab: Lab, name: str, *arguments: str) -> Iterator[Row]:
    began = time.monotonic()
    environment = {**os.environ, **({} if lab.dry else {"REQUIRE_GPU": "1"})}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *arguments]
        subprocess.run(command, cwd=_ROOT, env=environment, check=False)
        if not report.exists():
            yield {"suite": name, "not run": "pytest ended without a report; see the log"}
            return
        suite = next(ElementTree.parse(report).iter("testsuite"))
    count = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    yield {
        "suite": name,
        "passed": count["tests"] - failed - count["skipped"],
        "failed": failed,
        "skipped": count["skipped"],
        "s": round(time.monotonic() - began, 1),
    }
    for case in suite.iter("testcase"):
        for fault in [*case.iter("failure"), *case.iter("error")]:
            yield {"suite": name, "failure": f"{case.get('name')}: {(fault.get('message') or '')[:300]}"}
