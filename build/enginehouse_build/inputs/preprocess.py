"""What is done to pixels before a model sees them, as it is declared: `imagenet`, or `resize=256,crop=224,...`."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import onnx
from onnx import helper
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from enginehouse.contract.errors import ConfigError
from enginehouse_build.graph.compose import FLOATS, demand_opset, described, requested, shape
from enginehouse_build.graph.pixels import Axis, Pixels

#: torchvision's published weights were trained with this mean and deviation of the ImageNet training set, and are
#: evaluated on the central 224 of 256 pixels.
PRESETS: dict[str, dict[str, Any]] = {
    "imagenet": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "crop_pct": 224 / 256},
}
_OPSET = 11


class Preprocess(BaseModel):
    """Pixels to model input: resize, centre crop, colour order, scale, normalise, in this order.

    Requests carry uint8 pixels in RGB, `layout` NHWC or NCHW, of `size` (height, width); without a size, of the
    height and width that the model's input has, which may be free.

    `resize`: pixels of the shorter side (the longer one follows as in torchvision: truncated), or (height, width).
    `crop`: height and width of the centre that is kept. `crop_pct` in the place of both: images that do not have the
    model's (square) size are resized to it / `crop_pct` and cropped to it. `filter` is Pillow's, so antialiased.
    `colour` is what the model wants. The model gets `(pixel * scale - mean) / std`; `mean` and `std` have one value,
    or one per channel in the order of `colour`. `input` names the model's input; default: its only image.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: tuple[int, int] | None = None
    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    crop_pct: float | None = Field(default=None, gt=0, le=1)
    filter: Literal["bilinear", "bicubic"] = "bilinear"
    layout: Literal["NHWC", "NCHW"] = "NHWC"
    colour: Literal["rgb", "bgr"] = "rgb"
    scale: float = Field(default=1 / 255, gt=0, allow_inf_nan=False)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    input: str | None = None

    @classmethod
    def of(cls, text: str) -> Preprocess:
        """Read `imagenet`, `imagenet,size=480x640` or `resize=256,crop=224,mean=0.485/0.456/0.406,scale=1/255,...`.

        Raises ConfigError naming the value at fault and what would do.
        """
        first, *rest = (part.strip() for part in text.split(","))
        preset = PRESETS.get(first, {})
        given: dict[str, Any] = {}
        for part in rest if preset else [first, *rest]:
            key, equals, value = part.partition("=")
            if not equals or key not in cls.model_fields:
                raise ConfigError(
                    f"--preprocess: {part!r} is not known; give {' or '.join(PRESETS)}, or key=value pairs with "
                    f"{', '.join(cls.model_fields)}, separated by commas"
                )
            given[key] = value
        if "resize" in given or "crop" in given:
            preset = {key: value for key, value in preset.items() if key != "crop_pct"}
        try:
            return cls(**(preset | given))
        except ValidationError as error:
            fault = error.errors()[0]
            where = f"{fault['loc'][0]}: " if fault["loc"] else ""
            shown = "" if fault["type"] == "value_error" else f" (got {fault['input']!r})"
            raise ConfigError(f"--preprocess: {where}{fault['msg'].removeprefix('Value error, ')}{shown}") from None

    @field_validator("size", "crop", mode="before")
    @classmethod
    def _height_and_width(cls, value: Any) -> Any:
        pair = _sides(value)
        return (pair, pair) if isinstance(pair, int) else pair

    @field_validator("resize", mode="before")
    @classmethod
    def _shorter_side_or_both(cls, value: Any) -> Any:
        return _sides(value)

    @field_validator("scale", mode="before")
    @classmethod
    def _fraction(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        over, _, under = value.partition("/")
        try:
            return float(over) / float(under or 1)
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"{value!r} is no number; give 1/255 or 0.0039") from None

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _per_channel(cls, value: Any) -> Any:
        if isinstance(value, str):
            try:
                value = tuple(float(part) for part in value.split("/"))
            except ValueError:
                raise ValueError(f"{value!r} is no list of numbers; give one per channel, 0.485/0.456/0.406") from None
        return value

    @field_validator("mean", "std")
    @classmethod
    def _usable_numbers(cls, value: tuple[float, ...], info: Any) -> tuple[float, ...]:
        if not value or not all(math.isfinite(number) for number in value) or (info.field_name == "std" and 0 in value):
            raise ValueError(f"{value} cannot be used; give finite numbers, and a deviation other than 0")
        return value

    @model_validator(mode="after")
    def _one_way_to_the_size(self) -> Preprocess:
        if self.crop_pct is not None and (self.resize or self.crop):
            raise ValueError("crop_pct stands in the place of resize and crop; give it or them")
        return self

    def fit(self, model: onnx.ModelProto) -> Pixels:
        """What this means for `model`: every size known, checked against its input.

        Raises ConfigError when the model has no such input or the sizes do not lead to its height and width.
        """
        demand_opset(model, _OPSET, "pre-processing")
        value = self._image_input(model)
        _, channels, *target = shape(value)
        channels = channels or 3
        self._check_channels(value, channels)
        height, width = self._axes(value, (target[0], target[1]))
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        mean, std = (np.broadcast_to(np.array(values), channels) for values in (self.mean, self.std))
        return Pixels(
            input=value.name,
            dtype=dtype,
            layout=self.layout,
            channels=channels,
            height=height,
            width=width,
            filter=self.filter,
            reverse=self.colour == "bgr",
            scale=self.scale,
            mean=mean,
            std=std,
        )

    def _image_input(self, model: onnx.ModelProto) -> onnx.ValueInfoProto:
        inputs = requested(model)
        have = "; ".join(described(value) for value in inputs.values())
        if self.input is not None:
            if self.input not in inputs:
                raise ConfigError(f"--preprocess: the model has no input {self.input!r}; it has {have}")
            images = [inputs[self.input]]
            if not _is_image(images[0]):
                raise ConfigError(
                    f"--preprocess: input {described(images[0])} is no image; it must be float "
                    "[batch, channels, height, width] with 1, 3 or 4 channels"
                )
        else:
            images = [value for value in inputs.values() if _is_image(value)]
        if len(images) != 1:
            raise ConfigError(
                f"--preprocess: {len(images)} inputs are images (float, [batch, channels, height, width]); "
                f"name one with input=NAME, of {have}"
            )
        return images[0]

    def _check_channels(self, value: onnx.ValueInfoProto, channels: int) -> None:
        if self.colour == "bgr" and channels != 3:
            raise ConfigError(f"--preprocess: colour=bgr needs 3 channels; the model wants {described(value)}")
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (1, channels):
                raise ConfigError(
                    f"--preprocess: {name} has {len(numbers)} values; give 1 or {channels}, as {described(value)} wants"
                )

    def _axes(self, value: onnx.ValueInfoProto, target: tuple[int | None, int | None]) -> tuple[Axis, Axis]:
        resize, crop = self.resize, self.crop
        if self.size is None:
            if resize or crop:
                raise ConfigError(
                    "--preprocess: resize and crop need to know the size of the images that come in, because their "
                    "weights are computed once; add size=HEIGHTxWIDTH"
                )
            return Axis(target[0], target[0], 0, target[0]), Axis(target[1], target[1], 0, target[1])
        height, width = target
        if self.crop_pct is not None and self.size != target:
            if height is None or height != width:
                raise ConfigError(
                    f"--preprocess: with a size, crop_pct is for models of one square size, not "
                    f"{described(value)}; give resize and crop (as HEIGHTxWIDTH)"
                )
            resize, crop = round(height / self.crop_pct), (height, width)
        resized = _resized(self.size, resize)
        final = crop or resized
        if any(kept > side for kept, side in zip(final, resized, strict=True)):
            raise ConfigError(
                f"--preprocess: crop {_by(final)} is larger than the image, which is {_by(resized)} by then; "
                "give a smaller crop or a larger resize"
            )
        if any(side != wanted for side, wanted in zip(final, target, strict=True) if wanted):
            raise ConfigError(
                f"--preprocess: images end up as {_by(final)}, and the model wants {described(value)}; "
                "give resize=HEIGHTxWIDTH or crop=HEIGHTxWIDTH of that size"
            )
        vertical, horizontal = (
            # Rounded half to even, as torchvision's CenterCrop.
            Axis(incoming, whole, round((whole - kept) / 2), kept)
            for incoming, whole, kept in zip(self.size, resized, final, strict=True)
        )
        return vertical, horizontal


def _resized(size: tuple[int, int], resize: int | tuple[int, int] | None) -> tuple[int, int]:
    if not isinstance(resize, int):
        return resize or size
    height, width = size
    if height <= width:
        return resize, resize * width // height
    return resize * height // width, resize


def _sides(value: Any) -> Any:
    """`256`, `256x320` or the same as numbers: one side, or height and width."""
    sides = value.lower().split("x") if isinstance(value, str) else value
    sides = list(sides) if isinstance(sides, list | tuple) else [sides]
    if value is None:
        return None
    try:
        numbers = [int(side) for side in sides]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) not in (1, 2) or min(numbers) < 1:
        raise ValueError(f"{value!r} is no size; give pixels: 224, or HEIGHTxWIDTH")
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


def _is_image(value: onnx.ValueInfoProto) -> bool:
    dims = shape(value)
    return value.type.tensor_type.elem_type in FLOATS and len(dims) == 4 and dims[1] in (None, 1, 3, 4)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
