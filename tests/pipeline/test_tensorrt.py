"""TensorRT engines are really built, once per key, by whichever flavour is installed; RTX needs no GPU for that."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from enginehouse.contract.errors import ConversionFailed, EngineUnavailable
from enginehouse.contract.manifest import Artifact, Axis, Precision
from enginehouse.contract.tensors import Signature, TensorSpec
from enginehouse.engines import EngineOptions
from enginehouse.engines.tensorrt.kept_engines import engine_file
from enginehouse.engines.tensorrt.key import NodeFacts
from enginehouse.engines.tensorrt.library import RTX, library
from enginehouse_build.convert.tensorrt import Converted, convert

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None or importlib.util.find_spec("tensorrt") is not None,
    reason="tensorrt_rtx is not installed, or tensorrt goes before it",
)

MAX_ROWS = 8
SIGNATURE = Signature(
    (TensorSpec("x", np.dtype(np.float32), (None, 3, 16, 16)),), (TensorSpec("y", np.dtype(np.float32), (None, 10)),)
)


def network(path: Path, precision: Precision = "fp32", *, size: int | str = 16, layers: int = 1) -> Path:
    """Convolutions, a mean over the image, a linear layer; in int8 the first convolution has symmetric Q/DQ."""
    rng = np.random.default_rng(0)
    dtype = np.dtype(np.float16 if precision == "fp16" else np.float32)
    constants = {"w": rng.normal(size=(10, 10)).astype(dtype)}
    nodes = [helper.make_node("Cast", ["x"], ["h0"], to=helper.np_dtype_to_tensor_dtype(dtype))]
    for layer in range(layers):
        weight, width = f"c{layer}", 10 if layer else 3
        value, source = rng.normal(0, 0.1, size=(10, width, 3, 3)).astype(dtype), f"h{layer}"
        if precision == "int8":
            constants |= {
                "scale": np.array(0.02, np.float32),
                "zero": np.array(0, np.int8),
                f"{weight}q": np.clip(np.rint(value / 0.005), -127, 127).astype(np.int8),
                f"{weight}s": np.full(10, 0.005, np.float32),
                f"{weight}z": np.zeros(10, np.int8),
            }
            nodes += [
                helper.make_node("QuantizeLinear", [source, "scale", "zero"], [f"{source}q"]),
                helper.make_node("DequantizeLinear", [f"{source}q", "scale", "zero"], [f"{source}d"]),
                helper.make_node("DequantizeLinear", [f"{weight}q", f"{weight}s", f"{weight}z"], [weight], axis=0),
            ]
            source = f"{source}d"
        else:
            constants[weight] = value
        nodes.append(helper.make_node("Conv", [source, weight], [f"h{layer + 1}"], pads=[1, 1, 1, 1]))
    nodes += [
        helper.make_node("GlobalAveragePool", [f"h{layers}"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        helper.make_node("Cast", ["logits"], ["y"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def converted(onnx: Path, folder: Path, precision: Precision = "fp32") -> Converted:
    folder.mkdir()
    return convert(onnx, folder, SIGNATURE, MAX_ROWS, (), precision, None)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_engine_and_its_key_are_the_same_in_every_build(precision: Precision, tmp_path: Path) -> None:
    model = network(tmp_path / "net.onnx", precision)
    first, second = (converted(model, tmp_path / name, precision) for name in ("first", "second"))
    assert first == second
    for name in ("first", "second"):
        assert sorted(file.name for file in (tmp_path / name).iterdir()) == ["model.engine", "model.onnx"]
        assert (tmp_path / name / "model.onnx").read_bytes() == model.read_bytes()
        assert (tmp_path / name / "model.engine").stat().st_size > 10_000
    assert first.requires["flavour"] == RTX
    assert first.requires["version"] == library(RTX).__version__
    assert first.requires["precision"] == precision
    assert first.requires["profile"] == "x=1x3x16x16/4x3x16x16/8x3x16x16"
    assert {"8.6", "8.9", "12.0"} <= set(first.requires["compute_capability"].split(","))


def test_a_gpu_generation_without_a_kernel_is_left_out_and_named(tmp_path: Path) -> None:
    full, half = (
        converted(network(tmp_path / f"{precision}.onnx", precision), tmp_path / precision, precision)
        for precision in ("fp32", "fp16")
    )
    # Observed with TensorRT-RTX 1.7: no fp32 GEMM for Turing, but one for fp16.
    assert "7.5" not in full.requires["compute_capability"].split(",")
    assert any("not for compute capability 7.5" in remark and "FP32 GEMM" in remark for remark in full.remarks)
    assert "7.5" in half.requires["compute_capability"].split(",")


def test_free_dimensions_have_the_range_of_their_axis(tmp_path: Path) -> None:
    model = network(tmp_path / "net.onnx", size="side")
    signature = Signature((TensorSpec("x", np.dtype(np.float32), (None, 3, None, None)),), SIGNATURE.outputs)
    with pytest.raises(ConversionFailed, match="--axis NAME=MIN:OPT:MAX"):
        convert(model, tmp_path, signature, MAX_ROWS, (), "fp32", None)
    side = Axis(name="side", min=8, opt=16, max=64, dims=(("x", 2), ("x", 3)))
    requires = convert(model, tmp_path, signature, MAX_ROWS, (side,), "fp32", None).requires
    assert requires["profile"] == "x=1x3x8x8/4x3x16x16/8x3x64x64"
    assert (tmp_path / "model.engine").is_file()


def test_a_model_with_other_inputs_than_its_signature_is_refused(tmp_path: Path) -> None:
    other = Signature((TensorSpec("z", np.dtype(np.float32), (None, 3, 16, 16)),), SIGNATURE.outputs)
    with pytest.raises(ConversionFailed, match=r"the model's inputs are \['x'\].* \['z'\]"):
        convert(network(tmp_path / "net.onnx"), tmp_path, other, MAX_ROWS, (), "fp32", None)


def test_what_the_parser_cannot_read_is_refused_in_its_own_words(tmp_path: Path) -> None:
    node = helper.make_node("StringNormalizer", ["x"], ["y"])
    strings = [helper.make_tensor_value_info(name, TensorProto.STRING, ["batch"]) for name in ("x", "y")]
    graph = helper.make_graph([node], "words", strings[:1], strings[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "words.onnx")
    signature = Signature((TensorSpec("x", np.dtype(object), (None,)),), (TensorSpec("y", np.dtype(object), (None,)),))
    (tmp_path / "out").mkdir()
    with pytest.raises(ConversionFailed, match="TensorRT cannot read the model: .+"):
        convert(tmp_path / "words.onnx", tmp_path / "out", signature, 4, (), "fp32", None)


# --- Engines built on the node that loads them ---

NODE = NodeFacts(RTX, "", "8.9")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodeFacts:
    """A node with this machine's TensorRT and a GPU of capability 8.9; its cache is below `tmp_path`."""
    monkeypatch.setenv("ENGINEHOUSE_CACHE", str(tmp_path / "cache"))
    return replace(NODE, version=str(library(RTX).__version__))


@pytest.fixture
def artifact(tmp_path: Path) -> EngineOptions:
    """A published artifact whose engine was built for all capabilities."""
    folder = tmp_path / "artifact"
    requires = converted(network(tmp_path / "net.onnx"), folder).requires
    return options(sorted(folder.iterdir()), requires)


def options(files: list[Path], requires: dict[str, str]) -> EngineOptions:
    record = Artifact(name="tensorrt-fp32", format="tensorrt", precision="fp32", status="ready", requires=requires)
    return EngineOptions(files, record, SIGNATURE, MAX_ROWS, threads=1)


def cached(tmp_path: Path) -> list[str]:
    """What the node's cache has, without locks."""
    folder = tmp_path / "cache" / "engines"
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") if folder.is_dir() else []


def test_the_bundles_engine_is_used_where_it_fits(artifact: EngineOptions, here: NodeFacts, tmp_path: Path) -> None:
    told: list[str] = []
    found = engine_file(artifact, here, told.append)
    assert found.path == tmp_path / "artifact" / "model.engine"
    assert (found.built_here, told, cached(tmp_path)) == (False, [], [])


def test_for_another_version_one_is_built_here_once_and_it_says_so(
    artifact: EngineOptions, here: NodeFacts, tmp_path: Path
) -> None:
    old = replace(
        artifact,
        artifact=artifact.artifact.model_copy(update={"requires": artifact.artifact.requires | {"version": "1.2.3"}}),
    )
    told: list[str] = []
    found = engine_file(old, here, told.append)
    assert found.built_here
    assert found.path == tmp_path / "cache" / "engines" / found.key.digest / "model.engine"
    assert found.key.record() == artifact.artifact.requires | {"compute_capability": "8.9"}
    assert "built with tensorrt-rtx 1.2.3" in told[0] and "building one for 8.9" in told[0]
    assert "built here now, in " in told[1]
    bytes_built = found.path.read_bytes()
    again: list[str] = []
    assert engine_file(old, here, again.append) == found
    assert len(again) == 1 and "built here earlier" in again[0]
    assert found.path.read_bytes() == bytes_built


def test_each_kind_of_gpu_has_an_engine_of_its_own(artifact: EngineOptions, here: NodeFacts, tmp_path: Path) -> None:
    bare = options([tmp_path / "artifact" / "model.onnx"], {})
    made = [engine_file(bare, replace(here, compute_capability=gpu), print) for gpu in ("8.6", "12.0")]
    assert cached(tmp_path) == sorted(found.key.digest for found in made)
    assert made[0].path.read_bytes() != made[1].path.read_bytes()


def test_what_cannot_be_built_here_is_refused_with_the_reason(
    artifact: EngineOptions, here: NodeFacts, tmp_path: Path
) -> None:
    with pytest.raises(
        EngineUnavailable, match=r"does not build for compute capability 9\.0, only for 7\.5, .*\[trt\]"
    ):
        engine_file(artifact, replace(here, compute_capability="9.0"), print)
    with pytest.raises(EngineUnavailable, match="FP32 GEMM"):
        engine_file(artifact, replace(here, compute_capability="7.5"), print)
    assert cached(tmp_path) == []


def test_a_damaged_engine_in_the_cache_is_built_again(here: NodeFacts, artifact: EngineOptions, tmp_path: Path) -> None:
    bare = options([tmp_path / "artifact" / "model.onnx"], {})
    whole = engine_file(bare, here, print).path
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    assert engine_file(bare, here, print).path.read_bytes() == content


DRIVER = """
import json, sys
from pathlib import Path
from tests.pipeline.test_tensorrt import NODE, options
from enginehouse.engines.tensorrt.kept_engines import engine_file
from enginehouse.engines.tensorrt.key import NodeFacts

model, node = Path(sys.argv[1]), NodeFacts(**json.loads(sys.argv[2]))
engine_file(options([model], {}), node, lambda text: print(text, flush=True))
"""


def drive(model: Path, node: NodeFacts) -> subprocess.Popen[str]:
    """Another process of this node that loads the same artifact."""
    facts = json.dumps({name: getattr(node, name) for name in NodeFacts.__slots__})
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)]),
    }
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(model), facts], stdout=subprocess.PIPE, text=True, env=environment
    )


def test_processes_that_want_the_same_engine_at_once_build_it_once(here: NodeFacts, tmp_path: Path) -> None:
    model = network(tmp_path / "model.onnx", layers=20)
    with ThreadPoolExecutor(3) as callers:
        said = list(callers.map(lambda _: drive(model, here).communicate(timeout=60)[0], range(3)))
    assert sum("was built here now" in text for text in said) == 1, said
    assert all("was built here" in text for text in said), said
    assert len([name for name in cached(tmp_path) if not name.endswith(".timings")]) == 1


def builders() -> list[psutil.Process]:
    """Processes below this one that build an engine."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "enginehouse.engines.tensorrt.make" in process.cmdline():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def until(condition: Callable[[], object], timeout: float = 30) -> None:
    give_up = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.005)


def test_a_killed_builder_is_an_error_and_leaves_nothing_behind(here: NodeFacts, tmp_path: Path) -> None:
    model = network(tmp_path / "model.onnx", layers=60)
    with ThreadPoolExecutor(1) as caller:
        load = caller.submit(engine_file, options([model], {}), here, print)
        until(lambda: list(tmp_path.glob("cache/engines/*.lock")))
        (builder,) = builders()
        builder.kill()
        with pytest.raises(EngineUnavailable, match="the process that builds it was ended by SIGKILL"):
            load.result(timeout=30)
    assert cached(tmp_path) == []
    assert engine_file(options([model], {}), here, print).path.is_file()


def test_a_builder_ends_with_the_process_that_waits_for_it(here: NodeFacts, tmp_path: Path) -> None:
    model = network(tmp_path / "model.onnx", layers=60)
    driver = drive(model, here)
    until(lambda: list(tmp_path.glob("cache/engines/*.lock")))
    (builder,) = builders()
    driver.send_signal(signal.SIGKILL)
    driver.communicate(timeout=30)
    builder.wait(timeout=30)
    assert cached(tmp_path) == []


def test_what_a_builder_left_when_it_was_killed_while_writing_is_cleared_away(here: NodeFacts, tmp_path: Path) -> None:
    bare = options([network(tmp_path / "model.onnx")], {})
    folder = engine_file(bare, here, print).path.parent
    torn = folder.rename(folder.with_name(f"{folder.name}.x1.part"))
    (torn / "key.json").unlink()
    assert engine_file(bare, here, print).path.parent == folder
    assert cached(tmp_path) == [folder.name]
