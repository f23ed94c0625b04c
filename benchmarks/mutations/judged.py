"""The build's own reference, conversion and verification, with a graph in between that may have been broken."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from benchmarks.mutations.models import Model
from benchmarks.mutations.mutants import Graph
from enginehouse.contract.bounds import narrower
from enginehouse.contract.bundle import Bundle, sha256_of
from enginehouse.contract.errors import ConversionFailed
from enginehouse.contract.manifest import Artifact, File, Format, Manifest, Precision, SignatureRecord
from enginehouse.contract.tensors import Tensors
from enginehouse.engines.hardware import int8_products
from enginehouse_build.convert.convert import convert
from enginehouse_build.inputs.recipe import Recipe
from enginehouse_build.judge.verify import Verified, verify
from enginehouse_build.reference.onnx import plain_session
from enginehouse_build.reference.reference import MODEL, Reference, make_reference

Change = Callable[[Graph], None]


@dataclass(frozen=True)
class Subject:
    """A model whose reference has been made in `source`."""

    recipe: Recipe
    source: Path
    reference: Reference
    rows: Tensors

    @classmethod
    def of(cls, model: Model, folder: Path, *, with_rows: bool = True) -> Subject:
        """Make the reference in `folder`: with the user's rows, or with those that a build makes up."""
        source = folder / "source"
        source.mkdir(parents=True)
        onnx.save(model.make(), folder / "given.onnx")
        np.savez(folder / "rows.npz", **model.rows())
        given = {"samples": folder / "rows.npz"} if with_rows else {"axes": model.ranges}
        recipe = Recipe.of(
            source=str(folder / "given.onnx"), name="subject", store=str(folder), max_batch=8, threads=1, **given
        )
        return cls(recipe, source, make_reference(source, recipe), model.rows())

    def judged(self, format: Format, precision: Precision, change: Change | None = None) -> Verified:
        """What the gates say of the artifact that is converted from the graph after `change`.

        One that cannot be converted has failed, as in a build.
        """
        with tempfile.TemporaryDirectory() as scratch:
            broken = self._broken(Path(scratch), change)
            name = f"{format}-{precision}"
            folder = Path(scratch) / "bundle" / name
            folder.mkdir(parents=True)
            try:
                limits = self.recipe.limits_of(precision)
                convert(folder, format, precision, self.reference, broken, limits, Path(scratch))
            except ConversionFailed as error:
                return Verified("failed", None, None, (), str(error))
            files = tuple(
                File(path=f"{name}/{file.name}", sha256=sha256_of(file), bytes=file.stat().st_size)
                for file in sorted(folder.iterdir())
            )
            artifact = Artifact(
                name=name, format=format, precision=precision, status="ready", files=files,
                int8_products=int8_products() if precision == "int8" else None,
            )  # fmt: skip
            manifest = Manifest(
                name="subject", version="1", created="", source="", artifacts=(artifact,), axes=self.reference.axes,
                signature=SignatureRecord.of(self.reference.signature), max_batch=self.reference.max_rows,
            )  # fmt: skip
            bundle = Bundle(folder.parent, manifest)
            return verify(folder, bundle, name, self.reference, self.source, limits, self.recipe.max_drop, 1)

    def effect(self, change: Change) -> tuple[float, float]:
        """How `change` would look to the user on all rows at once: share of changed answers, relative L2 of numbers.

        An answer is changed where the best of its scores, or a whole number or text, is another one.
        """
        with tempfile.TemporaryDirectory() as scratch:
            got = plain_session(self._broken(Path(scratch), change) / MODEL, 1)(self.rows)
        want = plain_session(self.source / MODEL, 1)(self.rows)
        changed, distance = 0.0, 0.0
        for name, right in want.items():
            if right.dtype.kind == "f":
                norm = float(np.linalg.norm(right.astype(np.float64)))
                distance = max(distance, float(np.linalg.norm(got[name].astype(np.float64) - right)) / norm)
                if right.ndim == 2:
                    changed = max(changed, float(np.mean(got[name].argmax(-1) != right.argmax(-1))))
            else:
                changed = max(changed, float(np.mean(got[name] != right)))
        return changed, distance

    def _broken(self, scratch: Path, change: Change | None) -> Path:
        folder = scratch / "source"
        shutil.copytree(self.source, folder)
        if change is not None:
            proto = onnx.load(folder / MODEL)
            change(Graph(proto))
            onnx.checker.check_model(proto)
            onnx.save(proto, folder / MODEL)
        return folder


def caught(verified: Verified, sound: Verified) -> bool:
    """Whether the gates refuse the artifact, or bind requests to what it answers right, as they do not bind `sound`."""
    return verified.status != "ready" or any(
        narrower(bounds, sound.inputs_only.get(kind, {})) != sound.inputs_only.get(kind, {})
        for kind, bounds in verified.inputs_only.items()
    )
