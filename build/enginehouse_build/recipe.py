"""What to build, checked before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from enginehouse.bundle import Format, Precision
from enginehouse.errors import ConfigError, InvalidInput
from enginehouse.hardware import probe_cpu
from enginehouse.store import Store, check_name

FORMATS: tuple[Format, ...] = get_args(Format)
PRECISIONS: tuple[Precision, ...] = ("fp32",)


class Recipe(BaseModel):
    """One build: a source, where its bundle goes, and the matrix of formats x precisions.

    `version` None is the next integer after the store's versions. `max_batch` is the most rows an engine is built and
    checked for; with `batched` False a request is one whole input that is never merged with others. `threads` are the
    CPU threads that parity and latency are measured with.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    name: str
    store: str
    version: str | None = None
    formats: tuple[Format, ...] = FORMATS
    precisions: tuple[Precision, ...] = PRECISIONS
    max_batch: int = Field(default=32, ge=1, le=65536)
    batched: bool = True
    samples: Path | None = None
    threads: int = Field(default_factory=lambda: probe_cpu().cores, ge=1)

    @classmethod
    def of(cls, **values: Any) -> Recipe:
        """A checked recipe, or ConfigError naming the value at fault and what would do."""
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            option = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else "recipe"
            message = first["msg"].removeprefix("Value error, ")
            shown = "" if first["type"] == "value_error" else f" (got {first['input']!r})"
            raise ConfigError(f"{option}: {message}{shown}") from None

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

    @field_validator("samples")
    @classmethod
    def _samples_exist(cls, samples: Path | None) -> Path | None:
        if samples is not None and not samples.is_file():
            raise ValueError(f"{samples} is no file; give an .npz with one array per input")
        return samples

    @model_validator(mode="after")
    def _one_batch_choice(self) -> Recipe:
        if not self.batched and "max_batch" in self.model_fields_set and self.max_batch != 1:
            raise ValueError(f"max_batch {self.max_batch} needs a batch dimension; drop it or drop --no-batch")
        return self

    @property
    def max_rows(self) -> int:
        """Rows of the largest call: 1 without a batch."""
        return self.max_batch if self.batched else 1


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
    chosen = tuple(dict.fromkeys(values))
    if not chosen:
        raise ValueError(f"no {what} is asked for; give one or more of {', '.join(supported)}")
    for value in chosen:
        if value not in supported:
            raise ValueError(f"{what} {value!r} is not supported; supported: {', '.join(supported)}")
    return chosen
