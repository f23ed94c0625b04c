"""What can be known at the start is refused at the start: before a model is exported, converted or measured."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from enginehouse.contract.errors import BuildError, ConfigError, EnginehouseError
from enginehouse.contract.store import Store
from enginehouse.tools import cli
from enginehouse_build.inputs.libraries import check_libraries
from enginehouse_build.inputs.recipe import Recipe
from enginehouse_build.pipeline import build
from enginehouse_build.reference import reference
from enginehouse_build.reference.reference import make_reference

from .conftest import write_onnx
from .graphs import node, weights

MODULES = Path(__file__).parent / "modules.py"


@pytest.fixture(autouse=True)
def nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """An export or an adoption would be too late."""

    def too_late(*_: Any, **__: Any) -> None:
        raise AssertionError("this came too late")

    for name in ("_from_torch", "_from_file"):
        monkeypatch.setattr(reference, name, too_late)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With files that fit the models, and files that do not."""
    x = weights(8, 2, 3)
    np.savez(tmp_path / "fits.npz", x=x)
    np.savez(tmp_path / "other-name.npz", image=x)
    np.savez(tmp_path / "more.npz", x=x, mask=x)
    np.savez(tmp_path / "other-dtype.npz", x=x.astype(np.float64))
    np.savez(tmp_path / "other-shape.npz", x=x[:, :, :2])
    np.savez(tmp_path / "no-batch.npz", x=x[0])
    np.savez(tmp_path / "no-rows.npz", x=x[:0])
    np.save(tmp_path / "no-name.npy", x)
    (tmp_path / "picture.npz").write_bytes(b"\xff\xd8\xff\xe0 and so on")
    np.save(tmp_path / "labels.npy", np.arange(8))
    np.save(tmp_path / "seven.npy", np.arange(7))
    np.save(tmp_path / "shares.npy", np.linspace(0, 1, 8))
    (tmp_path / "metrics.py").write_text("def f1(outputs, labels):\n    return 1.0\n")
    nodes = [node("Reshape", ["x", "flat"], ["f"]), node("MatMul", ["f", "w"], ["y"])]
    constants = {"flat": np.array([0, -1]), "w": weights(6, 4)}
    write_onnx(tmp_path / "model.onnx", nodes, {"x": ["rows", 2, 3]}, {"y": ["rows", 4]}, **constants)
    return tmp_path


#: What does not fit: the recipe's values (files by their name), and the message.
MISFITS: Mapping[str, tuple[dict[str, Any], str]] = {
    "another name": ({"samples": "other-name.npz"}, "other-name.npz: input 'x' is missing; input 'image' is not known"),
    "one input more": ({"samples": "more.npz"}, "more.npz: input 'mask' is not known; the model wants x: FP32[*,2,3]"),
    "another dtype": ({"samples": "other-dtype.npz"}, "'x' has dtype float64 (FP64); the model wants float32 (FP32)"),
    "another shape": ({"samples": "other-shape.npz"}, "input 'x' has shape [8, 2, 2]; the model wants [*, 2, 3]"),
    "no batch": ({"samples": "no-batch.npz"}, "input 'x' has shape [2, 3]; the model wants [*, 2, 3]"),
    "no rows": ({"samples": "no-rows.npz"}, "input 'x' has 0 rows; send at least 1"),
    "no name": ({"samples": "no-name.npy"}, "one array without a name; save it with np.savez(path, INPUT=array)"),
    "no archive": ({"samples": "picture.npz"}, "it is a JPEG picture (image/jpeg)"),
    "calibration": (
        {"samples": "fits.npz", "calibration": "other-shape.npz"},
        "other-shape.npz: input 'x' has shape [8, 2, 2]; the model wants [*, 2, 3]",
    ),
    "too few labels": ({"samples": "fits.npz", "labels": "seven.npy"}, "the labels have shape [7] for 8 samples"),
    "no class numbers": ({"samples": "fits.npz", "labels": "shares.npy"}, "accuracy needs whole numbers [8]"),
    "labels alone": ({"labels": "labels.npy"}, "give --samples FILE.npz"),
    "metric alone": ({"samples": "fits.npz", "metric": "accuracy"}, "needs labels"),
    "no such metric": (
        {"samples": "fits.npz", "labels": "labels.npy", "metric": "metrics.py:f2"},
        "metrics.py has no function 'f2'; it has f1",
    ),
    "no such module": (
        {"samples": "fits.npz", "labels": "labels.npy", "metric": "no_such:f1"},
        "metric 'no_such:f1': cannot import 'no_such'",
    ),
    "int8 of nothing": ({"precisions": ("fp32", "int8")}, "int8 takes its ranges from real data, and there is none"),
    "range of nothing": ({"axes": {"length": "1:2:4"}}, "--axis length: the model has no free dimension of that name"),
}


@pytest.mark.parametrize("source", ["modules.py:plain", "model.onnx"])
@pytest.mark.parametrize("kind", MISFITS)
def test_what_does_not_fit_is_refused_before_the_model_is_exported(kind: str, source: str, folder: Path) -> None:
    values, message = MISFITS[kind]
    values = {key: _placed(value, folder) for key, value in values.items()}
    where = str(folder / source) if source.endswith(".onnx") else f"{MODULES.parent}/{source}"
    (folder / "made").mkdir()
    with pytest.raises(EnginehouseError, match=re.escape(message)):
        make_reference(
            folder / "made", Recipe.of(source=where, name="m", store=str(folder / "store"), threads=1, **values)
        )


def test_what_fits_passes(folder: Path) -> None:
    values = {"samples": folder / "fits.npz", "labels": folder / "labels.npy", "precisions": ("int8",)}
    for source in (f"{MODULES}:plain", str(folder / "model.onnx")):
        with pytest.raises(AssertionError, match="this came too late"):
            make_reference(folder, Recipe.of(source=source, name="m", store=str(folder), threads=1, **values))


def test_a_range_for_a_fixed_factory_names_how_to_free_it(folder: Path) -> None:
    asked = Recipe.of(source=f"{MODULES}:plain", name="m", store=str(folder), axes={"length": "1:2:4"})
    message = "it has none; name it in the factory with ModelSource(axes={'x': {2: 'NAME'}})"
    with pytest.raises(BuildError, match=re.escape(message)):
        make_reference(folder, asked)


LENGTHS = {
    "beyond the range": (
        {"axes": {"words": "2:4:5"}},
        weights(4, 6),
        "dimension 'words' is 6 .*; the model takes 2 to 5",
    ),
    "beyond the factory's range": ({}, weights(4, 21), "dimension 'words' is 21 .*; the model takes 2 to 20"),
    "another name": ({"axes": {"length": "2:4:5"}}, weights(4, 6), "--axis length: .*; it has words; name it in"),
}


@pytest.mark.parametrize("kind", LENGTHS)
def test_samples_are_held_against_the_ranges_of_a_factory(kind: str, folder: Path) -> None:
    values, rows, message = LENGTHS[kind]
    np.savez(folder / "words.npz", words=(rows > 0).astype(np.int64))
    asked = {"name": "m", "store": str(folder), "threads": 1, "samples": folder / "words.npz", **values}
    with pytest.raises(BuildError, match=message):
        make_reference(folder, Recipe.of(source=f"{MODULES}:embedding", **asked))


@pytest.mark.parametrize("extents", [(8, 4, 16), (-1, 4, 16), (4, 16), ("a", "b", "c")])
def test_a_range_of_a_factory_that_is_none_is_named(extents: tuple[Any, ...], folder: Path) -> None:
    (folder / "ranged.py").write_text(
        "import torch\nfrom enginehouse_build import ModelSource\n"
        "def make():\n"
        "    words = torch.ones(2, 6, dtype=torch.int64)\n"
        f"    given = {{'axes': {{'input': {{1: 'words'}}}}, 'ranges': {{'words': {extents!r}}}}}\n"
        "    return ModelSource(torch.nn.Embedding(7, 4), words, **given)\n"
    )
    message = re.escape(f"ModelSource(ranges={{'words': {extents!r}}}): ") + ".*give .min, opt, max."
    with pytest.raises(BuildError, match=message):
        make_reference(folder, Recipe.of(source=f"{folder}/ranged.py:make", name="m", store=str(folder), threads=1))


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"input": {2: "words"}}, "calls dimension 2 of input 'input' 'words', which is none; .* among 0 to 1"),
        ({"input": {0: "words"}}, "calls dimension 0 of input 'input' 'words', which is the batch"),
        ({"input": {1: "length"}}, "--axis words: the model has no free dimension of that name; it has length"),
    ],
)
def test_a_dimension_of_a_factory_that_is_none_is_named(axes: Any, message: str, folder: Path) -> None:
    (folder / "named.py").write_text(
        "import torch\nfrom enginehouse_build import ModelSource\n"
        "def make():\n"
        "    words = torch.ones(2, 6, dtype=torch.int64)\n"
        f"    return ModelSource(torch.nn.Embedding(7, 4), words, axes={axes!r}, ranges={{'words': (1, 6, 9)}})\n"
    )
    with pytest.raises(BuildError, match=message):
        make_reference(folder, Recipe.of(source=f"{folder}/named.py:make", name="m", store=str(folder), threads=1))


def test_inputs_of_which_only_some_have_rows_are_left_to_the_adoption(folder: Path) -> None:
    """A batch of one may be kept: then dim 0 of the others is what it is."""
    nodes = [node("MatMul", ["x", "w"], ["y"])]
    path = write_onnx(folder / "pair.onnx", nodes, {"x": [1, 3], "w": [3, 5]}, {"y": [1, 5]})
    np.savez(folder / "pair.npz", x=weights(1, 3), w=weights(3, 5))
    with pytest.raises(AssertionError, match="this came too late"):
        make_reference(
            folder,
            Recipe.of(source=str(path), name="m", store=str(folder), threads=1, samples=folder / "pair.npz"),
        )


#: Options of `enginehouse build FILE.onnx --name m --store STORE`, and what is said.
COMMANDS: Mapping[str, tuple[list[str], str]] = {
    "a range twice": (["--axis", "a=1:2:3", "--axis", "a=1:2:4"], "--axis a is given twice: 1:2:3 and 1:2:4"),
    "a range of nothing": (["--axis", "=1:2:3"], "--axis =1:2:3: write NAME=VALUE"),
    "an empty usual size": (["--axis", "a=0:0:3"], "--axis a opt: Input should be greater than or equal to 1 (got 0)"),
    "a limit that is none": (["--limit", "int8"], "--limit int8: write NAME=VALUE"),
    "a limit that is no number": (["--limit", "int8=much"], "--limit int8: Input should be a valid number"),
    "a limit of an unknown precision": (["--limit", "int4=0.1"], "--limit int4"),
    "TensorRT for nobody": (
        ["--on-cluster", "auto", "--formats", "onnx,openvino"],
        "--on-cluster auto has TensorRT engines made; --formats onnx,openvino asks for none",
    ),
    "int8 of nothing": (["--precisions", "fp32,int8"], "int8 takes its ranges from real data, and there is none"),
    "labels alone": (["--labels", "labels.npy"], "labels labels.npy need the samples that they are for"),
    "a metric alone": (["--metric", "metrics.py:f1"], "metric 'metrics.py:f1' needs labels; give --labels FILE.npy"),
    "an unknown metric": (["--metric", "f1"], "metric 'f1' is not known; give accuracy or module:function"),
    "an unknown format": (["--formats", "onnx,tflite"], "--formats: format 'tflite' is not supported; supported: onnx"),
    "an unknown precision": (["--precisions", "fp8"], "--precisions: precision 'fp8' is not supported"),
    "samples that are not there": (["--samples", "none.npz"], "--samples: none.npz is no file; give an .npz"),
    "pixels that are none": (["--preprocess", "imagenette"], "--preprocess: 'imagenette' is not known; give imagenet"),
}  # fmt: skip


@pytest.mark.parametrize("kind", COMMANDS)
def test_the_command_refuses_before_it_begins(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    options, message = COMMANDS[kind]
    ran = CliRunner().invoke(cli.app, ["build", "model.onnx", "--name", "m", "--store", "store", *options])
    assert isinstance(ran.exception, ConfigError), ran.output
    assert message in str(ran.exception)
    assert not (folder / "store").exists()


def _placed(value: Any, folder: Path) -> Any:
    if isinstance(value, str) and value.startswith("metrics.py"):
        return f"{folder}/{value}"
    return folder / value if isinstance(value, str) and value.endswith((".npz", ".npy")) else value


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": "none.onnx"}, "source 'none.onnx': no such file (looked at /"),
        ({"source": "none.py:make"}, "source 'none.py:make': no such file (looked at /"),
        ({"source": "model"}, "give package.module:function, path/to/file.py:function, FILE.onnx or a recipe.toml"),
        ({"source": "modules.py:plain", "metric": "none.py:f1"}, "metric 'none.py:f1': no such file (looked at /"),
    ],
)
def test_a_file_that_is_missing_is_told_before_any_step(values: dict[str, Any], message: str, folder: Path) -> None:
    stages: list[str] = []
    values = {"source": f"{MODULES}:plain"} | {
        key: str(MODULES) + ":plain" if value.startswith("modules") else value for key, value in values.items()
    }
    recipe = Recipe.of(name="m", store=str(folder / "store"), threads=1, **values)
    with pytest.raises(BuildError, match=re.escape(message)):
        build(recipe, lambda stage, *_: stages.append(stage))
    assert stages == []


def test_a_range_for_the_batch_names_the_option_for_it(folder: Path) -> None:
    for source, name in ((str(folder / "model.onnx"), "rows"), (f"{MODULES}:plain", "batch")):
        asked = Recipe.of(source=source, name="m", store=str(folder), axes={name: "1:2:4"})
        with pytest.raises(BuildError, match=rf"^--axis {name}: that dimension is the batch, .* --max-batch ROWS"):
            make_reference(folder, asked)


@pytest.mark.parametrize("library", ["openvino", "nncf"])
def test_a_library_that_is_not_installed_is_named_at_once(
    library: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What Python itself takes for "not installed".
    monkeypatch.setitem(sys.modules, library, None)
    given = {"source": str(folder / "model.onnx"), "name": "m", "store": str(folder / "store"), "threads": 1}
    asked = Recipe.of(**given, formats="onnx,openvino", precisions="fp32,int8", samples=folder / "fits.npz")
    with pytest.raises(ConfigError, match=rf"--formats openvino: {library} is not installed; install enginehouse\["):
        build(asked)
    check_libraries(Recipe.of(**given, precisions="fp32,int8", samples=folder / "fits.npz"))
    check_libraries(Recipe.of(**given, formats="onnx"))


def _file(path: Path) -> Path:
    path.write_text("")
    return path


def _taken(path: Path) -> Path:
    path.mkdir()
    _file(path / "m")
    return path


#: Stores in which nothing can be published: the user that runs the tests may write into any folder.
STORES: Mapping[str, Callable[[Path], Path]] = {
    "a file": lambda path: _file(path / "store"),
    "below a file": lambda path: _file(path / "file") / "store",
    "no real file system": lambda path: Path("/proc/store"),
    "a file in the model's place": lambda path: _taken(path / "store"),
}


@pytest.mark.parametrize("kind", STORES)
def test_a_store_that_cannot_be_written_is_refused_before_anything(kind: str, folder: Path) -> None:
    store = STORES[kind](folder)
    stages: list[str] = []
    recipe = Recipe.of(source=str(folder / "model.onnx"), name="m", store=str(store), threads=1)
    with pytest.raises(ConfigError, match=r"cannot be (written|read): .*"):
        build(recipe, lambda stage, *_: stages.append(stage))
    assert stages == []


def test_looking_whether_a_store_can_be_written_leaves_nothing_there(tmp_path: Path) -> None:
    Store(tmp_path / "store").check_writable("m")
    assert list(tmp_path.iterdir()) == []
    store = Store("memory://models")
    store.check_writable("m")
    assert store.models() == []
