"""Requests carry pixels: what the graph makes of them is what Pillow and numpy make of them, on every engine."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from enginehouse.contract.errors import BuildError, ConfigError
from enginehouse_build.inputs.preprocess import Preprocess
from enginehouse_build.inputs.recipe import Recipe
from enginehouse_build.reference.reference import make_reference

from .composed import ENGINES, build_for_tensorrt, dims, distance, load, make, tensor

MODULES = Path(__file__).with_name("modules.py")
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def photos(rows: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    """Gradients with edges and seeded noise, [rows, height, width, channels]; a row depends on its number only."""
    made = []
    for row in range(rows):
        generator = np.random.default_rng(row)
        y, x = np.mgrid[0:height, 0:width]
        ramps = np.stack([np.roll(x * 255 / width, 7 * row), y * 255 / height, (x + y) % 61 * 4, y % 2 * 255], axis=-1)
        noise = generator.normal(0, 12, (height, width, channels))
        made.append(np.clip(ramps[..., :channels] + noise, 0, 255).astype(np.uint8))
    return np.stack(made)


def network(height: int | str, width: int | str, dtype: int = TensorProto.FLOAT, channels: int = 3) -> onnx.ModelProto:
    """Returns the image as it sees it, and a convolution of it behind a scale per channel."""
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    generator = np.random.default_rng(0)
    return make(
        [
            helper.make_node("Identity", ["image"], ["seen"]),
            helper.make_node("Mul", ["image", "gain"], ["scaled"]),
            helper.make_node("Conv", ["scaled", "kernel"], ["features"], strides=[2, 2], pads=[1, 1, 1, 1]),
        ],
        [tensor("image", "batch", channels, height, width, dtype=dtype)],
        [
            tensor("seen", "batch", channels, height, width, dtype=dtype),
            tensor("features", "batch", 4, "h", "w", dtype=dtype),
        ],
        gain=generator.uniform(0.5, 2, (1, channels, 1, 1)).astype(kind),
        kernel=generator.normal(size=(4, channels, 3, 3)).astype(kind),
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("text", "size", "target"),
    [
        ("imagenet", (48, 64), (48, 64)),
        ("imagenet,size=90x125", (90, 125), (64, 64)),
        ("imagenet,size=40x31,filter=bicubic,colour=bgr", (40, 31), (64, 64)),
        ("size=60x50,resize=60x71", (60, 50), (60, 71)),
        ("size=75x50,crop=50x50,scale=1,mean=103.9/116.8/123.7,colour=bgr", (75, 50), (50, 50)),
        ("size=90x64,resize=32,crop=41x32,scale=1", (90, 64), (41, 32)),
    ],
)
def test_graph_agrees_with_the_model_behind_pillow(
    engine: str, text: str, size: tuple[int, int], target: tuple[int, int], tmp_path: Path
) -> None:
    model = network(*target)
    pixels = Preprocess.of(text).fit(model)
    original, composed = load("onnxruntime", model, tmp_path), load(engine, pixels.attach(model), tmp_path)
    for rows in (1, 2, 5):
        images = photos(rows, *size)
        got, want = composed(image=images), original(image=pixels.reference(images))
        assert got["seen"].dtype == np.float32
        assert distance(got["seen"], want["seen"]) < 1e-6
        assert distance(got["features"], want["features"]) < 1e-5
        first = composed(image=images[:1])
        assert distance(got["features"][:1], first["features"]) < 1e-6


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("filter", "levels"), [("bilinear", 1.01), ("bicubic", 1.5)])
def test_resize_and_crop_are_those_of_training_code(engine: str, filter: str, levels: float, tmp_path: Path) -> None:
    # What torchvision does to an 8-bit image: shorter side to 73, longer side truncated, centre 64, then normalise.
    images = photos(2, 130, 97)
    resample = Image.Resampling[filter.upper()]
    resized = [np.asarray(Image.fromarray(image).resize((73, 97), resample)) for image in images]
    want = np.stack([image[16:80, 4:68] for image in resized]).astype(np.float64)
    model = network(64, 64)
    composed = Preprocess.of(f"imagenet,size=130x97,filter={filter}").fit(model).attach(model)
    seen = load(engine, composed, tmp_path)(image=images)["seen"]
    got = (seen.transpose(0, 2, 3, 1) * STD + MEAN) * 255
    assert np.abs(got - want).max() < levels
    assert np.abs(got - want).mean() < 0.4


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("size", [(8, 8), (20, 24)])
def test_samples_that_are_no_pixels_as_they_come_are_refused_with_the_way_out(
    layout: str, size: tuple[int, int]
) -> None:
    model = network(8, 8)
    resized = f",size={size[0]}x{size[1]},resize=8x8" if size != (8, 8) else ""
    pixels = Preprocess.of(f"scale=1/255,layout={layout}{resized}").fit(model)
    images = photos(3, *size)
    planes = images.transpose(0, 3, 1, 2)
    right, wrong, order = (images, planes, (0, 2, 3, 1)) if layout == "NHWC" else (planes, images, (0, 3, 1, 2))
    assert pixels.taken(right) == ""
    dims = "height, width, channels" if layout == "NHWC" else "channels, height, width"
    takes = f"; --preprocess takes pixels as they come: uint8, 0 to 255, [rows, {dims}] ({layout})"
    other = "NCHW" if layout == "NHWC" else "NHWC"
    transposed = f". These are {other}: give image.transpose{order}, or build with --preprocess ...,layout={other}"
    assert pixels.taken(wrong) == takes + transposed
    early = ", before they are scaled and normalised"
    assert pixels.taken(right.astype(np.float32)) == takes + early
    # As training code has them.
    assert pixels.taken(wrong.astype(np.float32) / 255) == takes + early + transposed
    assert pixels.taken(right[:, 1:]) == takes


@pytest.mark.parametrize("where", ["samples", "calibration"])
def test_a_build_says_so_of_samples_and_calibration(where: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "planes.npz", image=photos(4, 8, 8).transpose(0, 3, 1, 2))
    np.savez(tmp_path / "pixels.npz", image=photos(4, 8, 8))
    files = {"samples": tmp_path / "pixels.npz", "calibration": tmp_path / "pixels.npz", where: tmp_path / "planes.npz"}
    recipe = Recipe.of(
        source=f"{MODULES}:pictures", name="m", store=str(tmp_path), threads=1, precisions=("int8",), **files
    )
    with pytest.raises(BuildError, match=r"planes.npz: input 'image' has shape \[4, 3, 8, 8\].* These are NCHW: give "):
        make_reference(tmp_path, recipe)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [(8, 8), (20, 24)])
def test_bgr_gives_the_model_blue_first(engine: str, size: tuple[int, int], tmp_path: Path) -> None:
    red = np.zeros((1, *size, 3), np.uint8)
    red[..., 0] = 255
    model = network(8, 8)
    pixels = Preprocess.of(f"size={size[0]}x{size[1]},resize=8x8,colour=bgr,mean=0/0/0.25").fit(model)
    for seen in (pixels.reference(red), load(engine, pixels.attach(model), tmp_path)(image=red)["seen"]):
        assert seen.mean(axis=(0, 2, 3)) == pytest.approx([0, 0, 0.75])


@pytest.mark.parametrize("engine", ENGINES)
def test_fp16_model_gets_fp16_computed_in_fp32(engine: str, tmp_path: Path) -> None:
    model = network(32, 32, TensorProto.FLOAT16)
    pixels = Preprocess.of("imagenet,size=50x44").fit(model)
    images = photos(2, 50, 44)
    assert pixels.reference(images).dtype == np.float16
    seen = load(engine, pixels.attach(model), tmp_path)(image=images)["seen"]
    assert seen.dtype == np.float16
    assert np.abs(seen.astype(np.float32) - pixels.reference(images).astype(np.float32)).max() < 2e-3


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("channels", [1, 4])
def test_images_without_colours_and_with_alpha(engine: str, channels: int, tmp_path: Path) -> None:
    model = network(14, 14, channels=channels)
    pixels = Preprocess.of("size=28x28,resize=14x14,mean=0.1307,std=0.3081").fit(model)
    images = photos(2, 28, 28, channels)
    got = load(engine, pixels.attach(model), tmp_path)(image=images)
    assert distance(got["seen"], pixels.reference(images)) < 1e-6


@pytest.mark.parametrize("engine", ENGINES)
def test_planar_pixels_are_taken_as_they_come(engine: str, tmp_path: Path) -> None:
    model = network(32, 32)
    nhwc, nchw = (Preprocess.of(f"imagenet,size=40x60,layout={layout}").fit(model) for layout in ("NHWC", "NCHW"))
    images = photos(2, 40, 60)
    planar = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    assert np.array_equal(nchw.reference(planar), nhwc.reference(images))
    got = load(engine, nchw.attach(model), tmp_path)(image=planar)
    assert distance(got["seen"], nhwc.reference(images)) < 1e-6


@pytest.mark.parametrize("engine", ENGINES)
def test_images_of_any_size_when_the_model_takes_any(engine: str, tmp_path: Path) -> None:
    model = network("height", "width")
    pixels = Preprocess.of("imagenet").fit(model)
    composed = pixels.attach(model)
    assert dims(composed.graph.input[0]) == ["batch", "height", "width", 3]
    run = load(engine, composed, tmp_path)
    for size in ((30, 44), (51, 20)):
        images = photos(2, *size)
        assert distance(run(image=images)["seen"], pixels.reference(images)) < 1e-6


def test_input_keeps_its_name_and_batch_and_becomes_uint8() -> None:
    model = network(32, 32)
    before = model.SerializeToString()
    composed = Preprocess.of("imagenet,size=40x60").fit(model).attach(model)
    (value,) = composed.graph.input
    assert (value.name, dims(value)) == ("image", ["batch", 40, 60, 3])
    assert value.type.tensor_type.elem_type == TensorProto.UINT8
    assert [output.name for output in composed.graph.output] == ["seen", "features"]
    assert model.SerializeToString() == before


def test_other_inputs_stay_as_they_are(tmp_path: Path) -> None:
    nodes = [helper.make_node("Mul", ["photo", "weight"], ["y"])]
    inputs = [tensor("weight", "batch", 1, 1, 1), tensor("photo", "batch", 3, 8, 8)]
    model = make(nodes, inputs, [tensor("y", "batch", 3, 8, 8)])
    with pytest.raises(
        ConfigError, match=r"2 inputs are images .* name one with input=NAME, of weight: FLOAT\[\*,1,1,1"
    ):
        Preprocess.of("imagenet").fit(model)
    pixels = Preprocess.of("imagenet,input=photo").fit(model)
    weight = np.array([1, 3], np.float32).reshape(2, 1, 1, 1)
    images = photos(2, 8, 8)
    got = load("onnxruntime", pixels.attach(model), tmp_path)(weight=weight, photo=images)
    assert distance(got["y"], pixels.reference(images) * weight) < 1e-6


def test_old_file_with_weights_as_inputs_and_a_branch_that_reads_the_image(tmp_path: Path) -> None:
    branches = [
        helper.make_graph([helper.make_node(op, ["image"], [f"{op}_y"])], op, [], [tensor(f"{op}_y", "batch", 3, 8, 8)])
        for op in ("Neg", "Abs")
    ]
    nodes = [helper.make_node("If", ["which"], ["y"], then_branch=branches[0], else_branch=branches[1])]
    inputs = [tensor("image", "batch", 3, 8, 8), tensor("which", dtype=TensorProto.BOOL)]
    model = make(nodes, inputs, [tensor("y", "batch", 3, 8, 8)], opset=11, ir_version=3, which=np.array(True))
    pixels = Preprocess.of("imagenet,size=20x20,filter=bicubic").fit(model)
    images = photos(2, 20, 20)
    got = load("onnxruntime", pixels.attach(model), tmp_path)(image=images)
    assert distance(got["y"], -pixels.reference(images)) < 1e-6


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize(
    "text", ["imagenet", "imagenet,size=90x125,colour=bgr", "imagenet,size=40x31,filter=bicubic", "size=90x70,crop=32"]
)
def test_tensorrt_builds_it(text: str, dtype: int) -> None:
    model = network(32, 32, dtype)
    build_for_tensorrt(Preprocess.of(text).fit(model).attach(model), rows=4)


def test_steps_are_told_in_order() -> None:
    text = "imagenet,size=90x125,colour=bgr"
    assert Preprocess.of(text).fit(network(64, 64)).describe() == (
        "image: uint8 pixels [*,90,125,3] -> bilinear to 73x101 -> centre 64x64 -> bgr -> x 0.00392157 -> "
        "mean 0.485/0.456/0.406, std 0.229/0.224/0.225 -> float32 NCHW"
    )


def test_declaration_survives_a_file() -> None:
    declared = Preprocess.of("imagenet,size=480x640")
    assert Preprocess.model_validate_json(declared.model_dump_json()) == declared
    assert Preprocess.of("size=64,resize=48") == Preprocess(size=(64, 64), resize=48)
    assert Preprocess.of("imagenet,size=300,resize=256,crop=224").crop_pct is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imagnet", "'imagnet' is not known; give imagenet, or key=value pairs with size, resize, crop"),
        ("imagenet,sise=3", "'sise=3' is not known"),
        ("", "'' is not known"),
        ("resize=big", "resize: 'big' is no size; give pixels: 224, or HEIGHTxWIDTH"),
        ("size=1x2x3", "size: '1x2x3' is no size"),
        ("crop=0", "crop: '0' is no size"),
        ("scale=1/0", "scale: '1/0' is no number; give 1/255 or 0.0039"),
        ("mean=a/b/c", "mean: 'a/b/c' is no list of numbers; give one per channel"),
        ("std=0/1/1", "std: (0.0, 1.0, 1.0) cannot be used"),
        ("colour=yuv", "colour: Input should be 'rgb' or 'bgr' (got 'yuv')"),
        ("crop_pct=0.9,crop=3", "crop_pct stands in the place of resize and crop"),
    ],
)
def test_bad_declaration_is_named_with_the_way_out(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"--preprocess: {message}")):
        Preprocess.of(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imagenet,resize=256,crop=64x48", "resize and crop need to know the size of the images that come in"),
        ("size=50x50", "images end up as 50x50, and the model wants image: FLOAT[*,3,64,48]; give resize="),
        ("size=50x50,crop=64x48", "crop 64x48 is larger than the image, which is 50x50 by then"),
        ("imagenet,size=90x90", "crop_pct is for models of one square size, not image: FLOAT[*,3,64,48]"),
        ("mean=1/2", "mean has 2 values; give 1 or 3"),
        ("input=x", "the model has no input 'x'; it has image: FLOAT[*,3,64,48]"),
    ],
)
def test_declaration_that_does_not_fit_the_model_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Preprocess.of(text).fit(network(64, 48))


def test_input_that_is_no_image_is_refused() -> None:
    tokens = tensor("tokens", "batch", "length", dtype=TensorProto.INT64)
    model = make([helper.make_node("Identity", ["tokens"], ["y"])], [tokens], [tensor("y", "batch", "length", dtype=7)])
    with pytest.raises(ConfigError, match=r"0 inputs are images .* of tokens: INT64\[\*,\*\]"):
        Preprocess.of("imagenet").fit(model)
    with pytest.raises(ConfigError, match=r"input tokens: INT64\[\*,\*\] is no image"):
        Preprocess.of("imagenet,input=tokens").fit(model)


def test_opset_that_is_too_old_is_refused() -> None:
    model = network(32, 32)
    model.opset_import[0].version = 9
    with pytest.raises(
        ConfigError, match="needs a model of opset 11 or newer, this one has 9; export it again, or convert .*version"
    ):
        Preprocess.of("imagenet").fit(model)
