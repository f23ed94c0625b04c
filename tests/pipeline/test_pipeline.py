"""The run itself: steps that fail alone, builds that are killed, and builds that repeat only what they have to."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from enginehouse.contract.bundle import MANIFEST, Bundle
from enginehouse.contract.errors import BuildError, ConfigError
from enginehouse.contract.manifest import Manifest
from enginehouse.contract.store import Store
from enginehouse.engines.worker_process import WorkerProcess
from enginehouse_build.inputs.recipe import Recipe
from enginehouse_build.pipeline import build
from enginehouse_build.steps import isolate

from .conftest import Recorder, rerun, write_onnx
from .driver import Driver

FORMATS = ("onnx", "openvino")


def steps_of(bundle: Bundle) -> dict[str, str]:
    return {step.name: step.outcome for step in bundle.manifest.steps}


def test_the_same_again_is_the_same_bundle_at_once(recipe: Path) -> None:
    first, outcomes, _ = rerun(recipe)
    assert outcomes["convert openvino-fp16"] == "done"
    again, outcomes, seconds = rerun(recipe)
    assert outcomes == {"reference": "cached", "publish": "cached"}
    assert (again.path, again.manifest) == (first.path, first.manifest)
    # The whole command has 3 s; interpreter and imports are not in here.
    assert seconds < 2


@pytest.mark.parametrize("changed", [pytest.param("samples", marks=pytest.mark.slow), "model"])
def test_a_change_of_content_is_a_new_version(recipe: Path, linear: Path, changed: str) -> None:
    rerun(recipe)
    if changed == "samples":
        np.savez(recipe.parent / "real.npz", x=np.ones((8, 3), np.float32))
    else:
        model = onnx.load(linear)
        weights = model.graph.initializer[0]
        weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * 2, weights.name))
        onnx.save(model, linear)
    bundle, outcomes, _ = rerun(recipe)
    assert bundle.manifest.version == "2"
    assert outcomes["reference"] == "done"


def test_one_precision_more_converts_and_verifies_only_that(recipe: Path) -> None:
    rerun(recipe)
    bundle, outcomes, _ = rerun(recipe, precisions=("fp32", "fp16", "int8"))
    assert bundle.manifest.version == "2"
    for name in ("onnx-fp32", "onnx-fp16", "openvino-fp32", "openvino-fp16"):
        assert (outcomes[f"convert {name}"], outcomes[f"verify {name}"]) == ("cached", "cached")
    assert (outcomes["convert onnx-int8"], outcomes["verify onnx-int8"]) == ("done", "done")
    # What was measured is not measured again, but for one that tells whether the machine is as fast as it was.
    assert outcomes["profile"] == "done"
    assert {table.artifact for table in bundle.manifest.latency} >= {"onnx-fp32", "onnx-int8", "openvino-fp16"}


def test_another_limit_judges_again_and_makes_only_what_it_would_change(recipe: Path) -> None:
    rerun(recipe)
    for limit in (2e-2, 4e-3):
        bundle, outcomes, _ = rerun(recipe, limits={"fp16": limit})
        redone = {stage for stage, outcome in outcomes.items() if outcome == "done"}
        # On a busy machine the times have not settled, and are measured again.
        assert redone - {"profile"} == {"verify onnx-fp16", "verify openvino-fp16", "publish"}
        assert bundle.manifest.artifact("onnx-fp16").limit == limit
    # With so little nothing passes, and to see that it has to be made.
    bundle, outcomes, _ = rerun(recipe, limits={"fp16": 1e-9})
    assert outcomes["convert onnx-fp16"] != "cached"


@pytest.mark.slow
def test_fresh_repeats_everything(recipe: Path) -> None:
    rerun(recipe)
    progress = Recorder()
    bundle = build(Recipe.from_file(recipe), progress, fresh=True)
    assert bundle.manifest.version == "2"
    assert "cached" not in {outcome for _, outcome, _ in progress.events}


def test_a_converter_that_is_killed_is_one_line_and_tried_again_next_time(recipe: Path) -> None:
    with Driver(recipe) as driver:
        driver.until("convert openvino-fp16", "started")
        driver.step_process().kill()
        events = driver.end()
    assert ("convert openvino-fp16", "failed") in events
    bundle = Store(recipe.parent / "store").open("tiny", "1")
    manifest = bundle.manifest
    killed = manifest.artifact("openvino-fp16")
    assert (killed.status, killed.files) == ("failed", ())
    assert "ended by SIGKILL" in (killed.reason or "")
    ready = [artifact.name for artifact in manifest.artifacts if artifact.status == "ready"]
    assert ready == ["onnx-fp32", "onnx-fp16", "openvino-fp32"]
    assert {table.artifact for table in manifest.latency} == set(ready)
    assert "SIGKILL" in (bundle.path / "report.html").read_text()
    again, outcomes, _ = rerun(recipe)
    assert again.manifest.version == "2"
    assert again.manifest.artifact("openvino-fp16").status == "ready"
    assert (outcomes["convert openvino-fp16"], outcomes["convert openvino-fp32"]) == ("done", "cached")


@pytest.mark.parametrize("by", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_killed_build_leaves_nothing_in_the_store_and_the_next_goes_on(recipe: Path, by: signal.Signals) -> None:
    with Driver(recipe) as driver:
        driver.until("verify onnx-fp32", "started")
        step = driver.step_process()
        assert driver.kill(by) != 0
        step.wait(10)
    store = recipe.parent / "store"
    assert not (store / "tiny").exists()
    assert Store(store).models() == []
    if by is signal.SIGINT:
        assert [path for path in (store / ".building").iterdir() if path.is_dir()] == []
    bundle, outcomes, _ = rerun(recipe)
    assert bundle.manifest.version == "1"
    assert all(outcomes[f"convert {artifact.name}"] == "cached" for artifact in bundle.manifest.artifacts)
    # What the killed one left is gone by now.
    assert [path for path in (store / ".building").iterdir() if path.is_dir()] == []


def test_the_memory_that_each_step_took_is_told(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is forked has the libraries of all steps in its memory.
    monkeypatch.setattr(isolate, "WorkerProcess", WorkerProcess)
    # The reference imports torch; ONNX files are only copied.
    bundle, _, _ = rerun(recipe, formats=("onnx",), precisions=("fp32",))
    peak = {step.name: step.peak_mib for step in bundle.manifest.steps}
    assert 0 < peak["convert onnx-fp32"] < peak["reference"] < 3000


def test_the_bundle_tells_its_steps_and_keeps_their_logs(recipe: Path) -> None:
    bundle, _, _ = rerun(recipe)
    names = list(steps_of(bundle))
    assert names[0] == "reference"
    assert names[-1] == "profile"
    assert [name for name in names if name.startswith("verify")] == [
        f"verify {artifact.name}" for artifact in bundle.manifest.artifacts
    ]
    for step in bundle.manifest.steps:
        assert step.log is not None
        assert (bundle.path / step.log).is_file()
        assert step.seconds > 0
    listed = {file.path for artifact in bundle.manifest.artifacts for file in artifact.files}
    listed |= {file.path for file in bundle.manifest.files}
    on_disk = {path.relative_to(bundle.path).as_posix() for path in bundle.path.rglob("*") if path.is_file()}
    assert on_disk == listed | {MANIFEST}
    assert Manifest.parse((bundle.path / MANIFEST).read_bytes(), MANIFEST) == bundle.manifest


def test_int8_that_is_asked_for_later_is_refused_at_the_start(tmp_path: Path) -> None:
    values = {"source": f"{Path(__file__).parent}/modules.py:plain", "name": "plain", "store": str(tmp_path)}
    asked = {"formats": "onnx", "threads": 1, "max_batch": 4}
    build(Recipe.of(**values, **asked, precisions="fp32"))
    progress = Recorder()
    with pytest.raises(BuildError, match=r"int8 takes its ranges from real data, .*ModelSource\(samples=...\)"):
        build(Recipe.of(**values, **asked, precisions="fp32,int8"), progress)
    assert [stage for stage, outcome, _ in progress.events if outcome != "started"] == ["reference"]


def test_whole_numbers_that_openvino_would_cut_fail_the_gate(tmp_path: Path, build_onnx: Callable[..., Bundle]) -> None:
    far = numpy_helper.from_array(np.array([2**40], dtype=np.int64), "far")
    graph = helper.make_graph(
        [helper.make_node("Add", ["ids", "far"], ["moved"])],
        "cut",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["b", 3])],
        [helper.make_tensor_value_info("moved", TensorProto.INT64, ["b", 3])],
        [far],
    )
    path = tmp_path / "cut.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    manifest = build_onnx(path, formats=FORMATS).manifest
    assert manifest.artifact("onnx-fp32").status == "ready"
    cut = manifest.artifact("openvino-fp32")
    assert cut.status == "failed"
    assert "100.0% of the whole numbers differ" in (cut.reason or "")


def test_an_ill_conditioned_model_is_explained(tmp_path: Path, build_onnx: Callable[..., Bundle]) -> None:
    # The difference of two sums that agree in all digits which fp16 keeps, and in most of fp32's.
    generator = np.random.default_rng(0)
    w = generator.standard_normal((64, 8)).astype(np.float32)
    v = (w + 1e-6 * generator.standard_normal(w.shape)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["x", "v"], ["b"]),
        helper.make_node("Sub", ["a", "b"], ["d"]),
        helper.make_node("Mul", ["d", "large"], ["y"]),
    ]
    large = np.array(1e6, dtype=np.float32)
    path = write_onnx(tmp_path / "ill.onnx", nodes, {"x": ["b", 64]}, {"y": ["b", 8]}, w=w, v=v, large=large)
    manifest = build_onnx(path, precisions=("fp32", "fp16"), formats=FORMATS).manifest
    for name in ("onnx-fp16", "openvino-fp16"):
        artifact = manifest.artifact(name)
        assert artifact.status == "failed"
        assert "ill-conditioned" in (artifact.reason or "")
    # What can be judged by simulation is not even written.
    assert manifest.artifact("onnx-fp16").files == ()
    assert artifact.parity is not None
    assert artifact.parity.relative_l2 > 0.1
    assert "ill-conditioned" in artifact.parity.explanation


def test_what_makes_an_agreement_say_little_is_remarked(recipe: Path, linear: Path) -> None:
    bundle, _, _ = rerun(recipe, samples=None)
    assert "parity is checked on made-up inputs only: give real ones with --samples FILE.npz" in bundle.manifest.remarks
    np.save(recipe.parent / "labels.npy", np.full(40, 7, np.int64))
    bundle, _, _ = rerun(recipe, labels=recipe.parent / "labels.npy", formats=("onnx",), precisions=("fp32",))
    assert bundle.manifest.remarks == ("accuracy of the reference itself is 0: are these the right labels?",)


def test_a_build_that_lost_the_race_for_a_number_takes_the_next(recipe: Path) -> None:
    with Driver(recipe) as first:
        first.until("profile", "started")
        # However fast it measures, it comes second.
        first.process.send_signal(signal.SIGSTOP)
        winner, _, _ = rerun(recipe, max_batch=2)
        first.process.send_signal(signal.SIGCONT)
        first.end()
    # Both were to be version 1, and the second one is whole all the same.
    store = Store(recipe.parent / "store")
    manifests = [store.manifest("tiny", version) for version in store.versions("tiny")]
    assert [manifest.version for manifest in manifests] == ["1", "2"]
    assert {manifest.max_batch for manifest in manifests} == {2, 4}
    assert winner.manifest == manifests[0]


def test_where_nothing_can_be_written_is_said(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (recipe.parent / "file").touch()
    with pytest.raises(ConfigError, match="file cannot be written: .*choose another --store"):
        rerun(recipe, store=str(recipe.parent / "file"))
    monkeypatch.setenv("ENGINEHOUSE_CACHE", str(recipe.parent / "file"))
    with pytest.raises(ConfigError, match="set ENGINEHOUSE_CACHE to another folder"):
        rerun(recipe)
