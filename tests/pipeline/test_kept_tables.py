"""What was timed once on this machine is not timed again, unless the machine has become another one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginehouse.contract import tensor_file
from enginehouse.contract.bundle import Bundle
from enginehouse.contract.latency import LatencyPoint, LatencyTable, Verdict
from enginehouse.contract.manifest import Artifact, EngineKind, File
from enginehouse_build.judge import profile
from enginehouse_build.judge.measured import Measured, measured_beside
from enginehouse_build.judge.profile import Target
from enginehouse_build.steps.kept_steps import KeptSteps
from enginehouse_build.steps.kept_tables import KeptTables

from .manifests import bare

ORT: EngineKind = "onnxruntime-cpu"
OPENVINO: EngineKind = "openvino-cpu"
FP32, FP16, BF16 = (ORT, "onnx-fp32"), (OPENVINO, "openvino-fp16"), (OPENVINO, "openvino-bf16")


def artifact(name: str, digest: str, ran: str = "fp32") -> Artifact:
    format, _, precision = name.partition("-")
    file = File(path=f"{name}/model", sha256=digest, bytes=1)
    values = {"name": name, "format": format, "precision": precision, "status": "ready", "files": [file]}
    return Artifact.model_validate(values | {"effective_precision": ran})


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """OpenVINO's bf16 is the file of its fp32, and computes in fp32 too."""
    artifacts = (artifact("onnx-fp32", "a"), artifact("openvino-fp32", "b"), artifact("openvino-fp16", "c"))
    return Bundle(tmp_path, bare().model_copy(update={"artifacts": (*artifacts, artifact("openvino-bf16", "b"))}))


def table(target: Target, ms: float, verdict: Verdict = "VALID") -> LatencyTable:
    point = LatencyPoint(rows=1, median_ms=ms, p90_ms=ms, min_ms=ms, count=9)
    return LatencyTable(engine=target[0], artifact=target[1], threads=1, host="h", points=(point,), verdict=verdict)


@dataclasses.dataclass
class Machine:
    """Stands for `profile.measure`: every call takes `ms`; `asked` are the targets of each run."""

    ms: float
    asked: list[list[Target]] = dataclasses.field(default_factory=list)
    broken: Target | None = None

    def measure(self, _: Bundle, targets: Sequence[Target], *__: object, **___: object) -> Measured:
        self.asked.append(list(targets))
        tables = [table(target, self.ms) for target in targets if target != self.broken]
        return tables, {self.broken: "crashed"} if self.broken in targets else {}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(1.0)
    monkeypatch.setattr(profile, "measure", machine.measure)
    return machine


def measured(bundle: Bundle, targets: Sequence[Target], known: Mapping[Target, LatencyTable]) -> Measured:
    samples = bundle.path / "samples"
    tensor_file.write(samples, [{"x": np.ones((1, 2), np.float32)}])
    return measured_beside(bundle.path, bundle, targets, known, samples, 1, 1.0, quick=False)


def times(tables: Sequence[LatencyTable]) -> dict[Any, float]:
    return {(table.engine, table.artifact): table.points[0].median_ms for table in tables}


def test_only_what_is_new_is_measured_beside_one_that_is_known(bundle: Bundle, machine: Machine) -> None:
    known = {FP32: table(FP32, 1.05)}
    tables, faults = measured(bundle, [FP32, FP16], known)
    assert (times(tables), faults) == ({FP32: 1.05, FP16: 1.0}, {})
    assert machine.asked == [[FP32, FP16]]
    everything = known | {(OPENVINO, "openvino-fp32"): table((OPENVINO, "openvino-fp32"), 5.0)}
    machine.asked.clear()
    measured(bundle, [*everything, FP16], everything)
    assert machine.asked == [[FP32, FP16]]


@pytest.mark.parametrize("before", [0.5, 2.0])
def test_on_a_machine_that_has_become_another_all_are_measured_again(
    bundle: Bundle, machine: Machine, before: float
) -> None:
    other: Target = (OPENVINO, "openvino-fp32")
    known = {FP32: table(FP32, before), other: table(other, 2 * before)}
    tables, _ = measured(bundle, [FP32, other, FP16], known)
    assert times(tables) == {FP32: 1.0, other: 1.0, FP16: 1.0}
    assert machine.asked == [[FP32, FP16], [other]]


def test_where_the_known_one_fails_now_all_are_measured_again(bundle: Bundle, machine: Machine) -> None:
    machine.broken = FP32
    tables, faults = measured(bundle, [FP32, FP16], {FP32: table(FP32, 1.0)})
    assert (times(tables), faults) == ({FP16: 1.0}, {FP32: "crashed"})


def test_the_same_file_in_the_same_precision_is_measured_once(bundle: Bundle, machine: Machine) -> None:
    fp32: Target = (OPENVINO, "openvino-fp32")
    tables, _ = measured(bundle, [fp32, BF16], {})
    assert [one.artifact for one in tables] == ["openvino-fp32", "openvino-bf16"]
    assert machine.asked == [[fp32]]
    # Where it computes in bf16, it is another.
    own = artifact("openvino-bf16", "b", ran="bf16")
    artifacts = (*bundle.manifest.artifacts[:3], own)
    measured(Bundle(bundle.path, bundle.manifest.model_copy(update={"artifacts": artifacts})), [fp32, BF16], {})
    assert machine.asked[-1] == [fp32, BF16]


def test_what_is_kept_is_valid_and_found_by_what_was_timed(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINEHOUSE_CACHE", str(tmp_path / "cache"))
    fp32: Target = (OPENVINO, "openvino-fp32")
    kept = KeptTables(KeptSteps(), bundle, ["rows", 2])
    kept.keep([table(FP32, 1.0), table(fp32, 2.0), table(FP16, 3.0, "INVALID")])
    assert times(list(kept.known([FP32, fp32, FP16, BF16]).values())) == {FP32: 1.0, fp32: 2.0, BF16: 2.0}
    assert not KeptTables(KeptSteps(), bundle, ["rows", 4]).known([FP32])
    changed = bundle.manifest.model_copy(update={"artifacts": (artifact("onnx-fp32", "z"),)})
    assert not KeptTables(KeptSteps(), Bundle(tmp_path, changed), ["rows", 2]).known([FP32])
