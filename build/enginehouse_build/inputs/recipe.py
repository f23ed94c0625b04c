"""What to build, checked before anything starts: from the command line, or from a `recipe.toml`."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

import psutil
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from enginehouse.contract.errors import ConfigError, InvalidInput
from enginehouse.contract.manifest import MOST_ROWS, Format, NumericsRule, Objective, Precision
from enginehouse.contract.parity import Limits, limits_of
from enginehouse.contract.store import Store, check_name
from enginehouse.engines.hardware import probe_cpu
from enginehouse_build.inputs.postprocess import Postprocess
from enginehouse_build.inputs.postprocess import of as postprocess_of
from enginehouse_build.inputs.preprocess import Preprocess

FORMATS: tuple[Format, ...] = get_args(Format)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
#: Where each precision exists. The CPU providers of ONNX Runtime have no bf16 kernels; on GPUs fp16 takes its place.
PRECISIONS_OF: Mapping[Format, tuple[Precision, ...]] = {
    "onnx": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "fp16", "bf16", "int8"),
    "tensorrt": ("fp32", "fp16", "int8"),
}
#: Why the others are not made.
_NOT_MADE: Mapping[Format, str] = {
    "onnx": "ONNX Runtime has no bf16 kernels for CPUs, and on GPUs fp16 takes its place",
    "tensorrt": "on GPUs fp16 takes its place",
}
#: Without int8, whose answers differ by more than rounding and which needs real samples.
DEFAULT_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")


NO_RANGES = (
    "int8 takes its ranges from real data, and there is none: give --samples FILE.npz, --calibration FILE.npz or "
    "ModelSource(samples=...), or leave int8 out of --precisions"
)
#: How the command line calls a field, where that is not its name.
_OPTIONS = {
    "axes": "--axis",
    "batched": "--no-batch",
    "limits": "--limit",
    "step_timeout_s": "--step-timeout",
}


class AxisRange(BaseModel):
    """Smallest, usual and largest extent of a free dimension; `MIN:OPT:MAX` as text.

    The smallest may be 0, for what is empty at first (the past of a decoder); the usual one is what is measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min: int = Field(ge=0)
    opt: int = Field(ge=1)
    max: int

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        parts = value.split(":")
        if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
            raise ValueError(f"{value!r} is no range; write MIN:OPT:MAX, for instance 1:128:512")
        return dict(zip(("min", "opt", "max"), map(int, parts), strict=True))

    @model_validator(mode="after")
    def _ordered(self) -> AxisRange:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"{self.min}:{self.opt}:{self.max} is not ascending; write MIN:OPT:MAX")
        return self


def _text(read: Callable[[str], Any]) -> BeforeValidator:
    return BeforeValidator(lambda value: read(value) if isinstance(value, str) else value)


def padded(text: str) -> dict[str, int | float]:
    """`NAME=VALUE,NAME=VALUE`, or `none`, as the field `pad`. Raises ValueError."""
    if text.strip() == "none":
        return {}
    found: dict[str, int | float] = {}
    for part in text.split(","):
        name, _, value = (each.strip() for each in part.partition("="))
        try:
            number = float(value)
        except ValueError:
            raise ValueError(f"{part!r} is no padding; write NAME=VALUE,NAME=VALUE or none") from None
        found[name] = int(number) if number.is_integer() else number
    return found


class Recipe(BaseModel):
    """One build: a source, where its bundle goes, and the matrix of formats x precisions.

    - `version` None is the next integer after the store's versions.
    - `max_batch` is the most rows an engine is built and checked for; with `batched` False a request is one whole input
      that is never merged with others.
    - `axes` gives the range of every free dimension besides the batch, by its name in the model; the first one is the
      cost axis, along which latency is measured.
    - `pad` gives, by input, the value with which its rows may be made longer, so that requests of several lengths share
      a call where that is proven to change no answer; None is for what the build finds itself, {} for nothing.
    - `samples`, `calibration`: .npz files with one array for each input; `labels`: an .npy file.
    - `metric`: "accuracy" or `module:function`; an artifact may lose `max_drop` of it.
    - `limits`: the relative L2 error that passes, by precision, instead of `enginehouse.contract.parity.LIMITS`.
    - `numerics`: which artifacts answer when the model is served and nobody says otherwise; None is `full`.
    - `quick` measures one round of the smallest and the largest batch only: for iterating, not for choosing.
    - `threads`: CPU threads that parity and latency are measured with.
    - `step_timeout_s` and `memory_mib` bound every step of the build, which is a process of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    name: str
    store: str
    version: str | None = None
    formats: tuple[Format, ...] = FORMATS
    precisions: tuple[Precision, ...] = DEFAULT_PRECISIONS
    max_batch: int = Field(default=32, ge=1, le=MOST_ROWS)
    batched: bool = True
    axes: dict[str, AxisRange] = Field(default_factory=dict)
    pad: Annotated[dict[str, int | float] | None, _text(padded)] = None
    preprocess: Annotated[Preprocess, _text(Preprocess.of)] | None = None
    postprocess: Annotated[Postprocess, _text(postprocess_of)] | None = None
    samples: Path | None = None
    calibration: Path | None = None
    labels: Path | None = None
    metric: str | None = None
    max_drop: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    limits: dict[Precision, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    numerics: NumericsRule | None = None
    objective: Objective = "throughput"
    max_latency_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    quick: bool = False
    threads: int = Field(default_factory=lambda: probe_cpu().cores, ge=1)
    step_timeout_s: float = Field(default=1800.0, gt=0)
    memory_mib: int = Field(default_factory=lambda: psutil.virtual_memory().total * 8 // 10 >> 20, ge=256)

    @classmethod
    def of(cls, **values: Any) -> Recipe:
        """A checked recipe, or ConfigError naming the value at fault and what would do."""
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            message = first["msg"].removeprefix("Value error, ")
            if not first["loc"]:
                raise ConfigError(message) from None
            key, *inner = [str(part) for part in first["loc"]]
            if first["type"] == "extra_forbidden" and not inner:
                near = difflib.get_close_matches(key.replace("-", "_"), cls.model_fields, 1)
                meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(cls.model_fields)}"
                raise ConfigError(f"{key} is not known; {meant}") from None
            option = " ".join([_OPTIONS.get(key, "--" + key.replace("_", "-")), *(part.strip("[]") for part in inner)])
            shown = "" if first["type"] in ("value_error", "missing") else f" (got {first['input']!r})"
            raise ConfigError(f"{option}: {message}{shown}") from None

    @classmethod
    def from_file(cls, path: Path, **overrides: Any) -> Recipe:
        """The recipe in a TOML file whose keys are the fields; paths in it are relative to its folder.

        `overrides` go before what it says; of axes and limits each name by itself. Raises ConfigError naming the file
        and what is wrong in it.
        """
        try:
            values = tomllib.loads(path.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{path}: not a readable recipe: {error}") from None
        for key in ("samples", "calibration", "labels"):
            if key in values:
                values[key] = path.parent / str(values[key])
        if "://" not in str(values.get("store", "://")):
            values["store"] = str(path.parent / values["store"])
        for key in ("source", "metric"):
            named = str(values.get(key, ""))
            if named.endswith(".onnx") or named.rpartition(":")[0].endswith(".py"):
                values[key] = str(path.parent / named)
        for key in ("axes", "limits"):
            if isinstance(values.get(key), dict) and key in overrides:
                overrides[key] = values[key] | overrides[key]
        try:
            return cls.of(**(values | overrides))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    @field_validator("name")
    @classmethod
    def _usable_name(cls, name: str) -> str:
        return _checked("model", name)

    @field_validator("version")
    @classmethod
    def _usable_version(cls, version: str | None) -> str | None:
        return version if version is None else _checked("version", version)

    @field_validator("formats", mode="before")
    @classmethod
    def _known_formats(cls, formats: Any) -> Any:
        return _subset("format", formats, FORMATS)

    @field_validator("precisions", mode="before")
    @classmethod
    def _known_precisions(cls, precisions: Any) -> Any:
        return _subset("precision", precisions, PRECISIONS)

    @field_validator("samples", "calibration", "labels")
    @classmethod
    def _exists(cls, file: Path | None) -> Path | None:
        if file is not None and not file.is_file():
            raise ValueError(f"{file} is no file; give an .npz with one array per input (labels: an .npy)")
        return file

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        if not self.batched and "max_batch" in self.model_fields_set and self.max_batch != 1:
            raise ValueError(f"max_batch {self.max_batch} needs a batch dimension; drop it or drop --no-batch")
        if self.metric is not None and self.metric != "accuracy" and ":" not in self.metric:
            raise ValueError(f"metric {self.metric!r} is not known; give accuracy or module:function")
        if self.source.endswith(".onnx"):
            # A factory may have them all.
            if "int8" in self.precisions and self.samples is None and self.calibration is None:
                raise ValueError(NO_RANGES)
            if self.labels is not None and self.samples is None:
                raise ValueError(f"labels {self.labels} need the samples that they are for; give --samples FILE.npz")
            if self.metric is not None and self.labels is None:
                raise ValueError(f"metric {self.metric!r} needs labels; give --labels FILE.npy")
        if not self.matrix:
            raise ValueError(
                f"none of the formats {', '.join(self.formats)} has the precision {', '.join(self.precisions)}; "
                + "; ".join(f"{format} has {', '.join(known)}" for format, known in PRECISIONS_OF.items())
            )
        classes = {"int8" if precision == "int8" else "full" for _, precision in self.matrix}
        if self.numerics not in (None, "any", *classes):
            raise ValueError(
                f"numerics {self.numerics!r} needs an artifact of that class; the precisions "
                f"{', '.join(self.precisions)} make only {', '.join(sorted(classes))}"
            )
        return self

    @property
    def max_rows(self) -> int:
        """Rows of the largest call: 1 without a batch."""
        return self.max_batch if self.batched else 1

    @property
    def matrix(self) -> tuple[tuple[Format, Precision], ...]:
        """The artifacts to make: every asked-for format in every asked-for precision that it has."""
        return tuple(
            (format, precision)
            for format in self.formats
            for precision in self.precisions
            if precision in PRECISIONS_OF[format]
        )

    @property
    def not_made(self) -> tuple[str, ...]:
        """In words, what was asked for by name and is left out, because the format has no such precision."""
        if "precisions" not in self.model_fields_set:
            return ()
        return tuple(
            f"{format}-{precision} is not made: {_NOT_MADE[format]}"
            for format in self.formats
            for precision in self.precisions
            if precision not in PRECISIONS_OF[format]
        )

    def limits_of(self, precision: Precision) -> Limits:
        """The gate of a precision in this build."""
        return limits_of(precision, self.limits.get(precision))


def next_version(store: Store, name: str) -> str:
    """The integer after the largest version number that `name` has in the store; "1" for the first."""
    numbers = [int(version) for version in store.versions(name) if version.isdecimal()]
    return str(max(numbers, default=0) + 1)


def _checked(what: str, name: str) -> str:
    try:
        return check_name(what, name)
    except InvalidInput as error:
        raise ValueError(str(error)) from None


def _subset(what: str, values: Any, supported: tuple[str, ...]) -> tuple[str, ...]:
    chosen = tuple(dict.fromkeys(values.replace(" ", "").split(",") if isinstance(values, str) else values))
    if not chosen:
        raise ValueError(f"no {what} is asked for; give one or more of {', '.join(supported)}")
    for value in chosen:
        if value not in supported:
            raise ValueError(f"{what} {value!r} is not supported; supported: {', '.join(supported)}")
    return chosen
