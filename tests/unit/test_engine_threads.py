"""Engines compute behind whoever passes requests on."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest
from tests.conformance.conftest import write_bundle
from tests.conformance.models import BY_NAME
from tests.unit.loaded_models import RNG

from enginehouse.contract.config import ModelConfig
from enginehouse.contract.manifest import EngineKind, Format
from enginehouse.pools.engine_threads import NICE, step_back
from enginehouse.pools.loading import Loader

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux only")


def nice_of_threads() -> dict[int, int]:
    found = {}
    for folder in Path("/proc/self/task").iterdir():
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        found[int(folder.name)] = int(fields[16])
    return found


@pytest.mark.parametrize(("kind", "form"), [("onnxruntime-cpu", "onnx"), ("openvino-cpu", "openvino")])
async def test_all_that_computes_for_a_loaded_model_steps_back_and_nothing_else(
    kind: EngineKind, form: Format, tmp_path: Path
) -> None:
    case = BY_NAME["classifier"]
    bundle = tmp_path / case.name / "1"
    bundle.mkdir(parents=True)
    write_bundle(bundle, case, form, "fp32", "1")
    before = nice_of_threads()
    loader = Loader("pool", (kind,), 2, router=False, in_serve=False)
    config = ModelConfig(name=case.name, version="1")
    loaded = await loader.load("m", lambda: (str(tmp_path), config), print)
    await loaded.infer([case.sample(RNG, 1)], 1, 10)
    after = nice_of_threads()
    assert {tid: after[tid] for tid in before.keys() & after.keys()} == before
    ours = {thread.name: after[thread.native_id or 0] for thread in threading.enumerate()}
    assert (ours[f"{case.name}_0"], ours["load_0"]) == (NICE, NICE), ours
    # The engine's own threads.
    assert list(after[tid] for tid in after.keys() - before.keys()).count(NICE) >= 3
    assert os.getpriority(os.PRIO_PROCESS, 0) == before[os.getpid()]
    await loaded.close()


def test_threads_of_a_gpus_engines_do_not() -> None:
    assert step_back("onnxruntime-cpu", "openvino-cpu") is not None
    assert step_back("tensorrt") is None and step_back("onnxruntime-cuda") is None
