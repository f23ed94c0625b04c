"""The build, start to end: reference -> convert -> verify -> profile -> choose -> report -> publish.

Artifacts stand alone: what goes wrong with one is recorded in its status and reason, and the others go on. Every step
runs in a process of its own (`isolate`) and is kept by the content of its inputs (`kept_steps`), so that a build that
was killed, or asks for one precision more, repeats only what it has to.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from enginehouse.contract.bundle import MANIFEST, Bundle, sha256_of
from enginehouse.contract.errors import BuildError, ConversionFailed, EnginehouseError, EngineUnavailable
from enginehouse.contract.latency import LatencyTable
from enginehouse.contract.manifest import Artifact, EngineKind, File, Format, Manifest, Precision, SignatureRecord, Step
from enginehouse.contract.numerics import admits, is_servable
from enginehouse.contract.store import Store, version_order
from enginehouse.engines.hardware import int8_products
from enginehouse_build import report
from enginehouse_build.convert.convert import convert
from enginehouse_build.inputs.functions import check_there
from enginehouse_build.inputs.libraries import check_libraries
from enginehouse_build.inputs.recipe import Recipe, next_version
from enginehouse_build.judge import choice, profile
from enginehouse_build.judge.extents import limited
from enginehouse_build.judge.measured import identity, is_quick, measured_beside
from enginehouse_build.judge.profile import Target
from enginehouse_build.judge.verify import Verified, verify
from enginehouse_build.reference.reference import SAMPLES, Reference, make_reference
from enginehouse_build.steps import checks, provenance
from enginehouse_build.steps.isolate import Bounds
from enginehouse_build.steps.kept_steps import code_digest, digest_of, link, versions
from enginehouse_build.steps.kept_tables import KeptTables
from enginehouse_build.steps.on_node import Made, Order, order_of, taken_over
from enginehouse_build.steps.steps import Outcome, Progress, Steps

REPORT = "report.html"
LOGS = "logs"


#: Runs `on_node.make` on a node that has a GPU.
OnNode: TypeAlias = Callable[[Order], Made]


def build(
    recipe: Recipe, progress: Progress | None = None, *, fresh: bool = False, on_node: OnNode | None = None
) -> Bundle:
    """Run `recipe` and return the published bundle, or the newest one if it was made from the very same.

    `fresh` makes everything again; `on_node` has the TensorRT artifacts made where their GPU is. Raises BuildError
    (ExportFailed for the source) when nothing can be served; the store is unchanged then, as it is after Ctrl-C or a
    crash.
    """
    store = Store(recipe.store)
    known = store.versions(recipe.name)
    store.check_writable(recipe.name)
    check_libraries(recipe)
    check_there("source", recipe.source)
    check_there("metric", recipe.metric)
    staging = store.staging()
    # A folder of its own: the staging folder is private to this user, a published bundle is not.
    folder = staging / "bundle"
    (folder / LOGS).mkdir(parents=True)
    tell = progress or _silent
    steps = Steps(folder / LOGS, Bounds(recipe.step_timeout_s, recipe.memory_mib), tell, fresh=fresh)
    try:
        return _Build(recipe, store, known, folder, tell, steps, fresh, on_node).run()
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@dataclass(slots=True)
class _Build:
    recipe: Recipe
    store: Store
    known: list[str]
    folder: Path
    progress: Progress
    steps: Steps
    fresh: bool
    on_node: OnNode | None
    #: Digest of the reference: all later steps depend on it.
    content: str = ""
    #: Digest of the task metric, which only the gate depends on.
    judging: str = ""
    #: Up to where artifacts are right, of free dimensions without a range.
    extents: list[Mapping[str, int]] = field(default_factory=list)

    def run(self) -> Bundle:
        recipe = self.recipe
        self._check_version()
        source, reference = self.steps.run(
            "reference", provenance.of_reference(recipe), make_reference, recipe,
            still_good=lambda made: provenance.is_current(made, recipe),
        )  # fmt: skip
        self.content = digest_of(provenance.of_files(source))
        self.judging = digest_of(provenance.of_metric(reference))
        asked = recipe.model_dump(mode="json", exclude={"store", "version", "step_timeout_s", "memory_mib"})
        where = "here" if self.on_node is None else "on a GPU node"
        key = digest_of(self.content, self.judging, asked, versions(), code_digest(), provenance.of_machine(), where)
        if (same := self._same(key)) is not None:
            self.progress("publish", "cached", f"version {same} was built from the very same")
            return self.store.open(recipe.name, same, ())
        version = recipe.version or next_version(self.store, recipe.name)
        if version in self.known:
            raise self._taken(version)
        artifacts = [self._converted(source, reference, *wanted) for wanted in recipe.matrix]
        checks.carry(source, self.folder)
        manifest = self._manifest(version, key, reference, artifacts)
        bundle = self._write(manifest)
        elsewhere = (
            [] if self.on_node is None else [self._made_on_node(self.on_node, bundle, each) for each in artifacts]
        )
        artifacts = [artifact for artifact, _ in elsewhere] or artifacts
        judged = [self._verified(bundle, artifact, source, reference) for artifact in artifacts]
        artifacts = [artifact for artifact, _ in judged]
        if not any(is_servable(artifact) and admits(recipe.numerics or "any", artifact) for artifact in artifacts):
            reasons = "; ".join(f"{one.name} is {one.status}: {one.reason or 'left out'}" for one in artifacts)
            raise BuildError(f"no artifact of {recipe.name} can be served: {reasons}")
        update = {"artifacts": tuple(artifacts), "axes": limited(reference.axes, self.extents)}
        bundle = self._write(manifest.model_copy(update=update))
        targets = [(kind, artifact.name) for artifact, kinds in judged for kind in kinds]
        tables = self._profiled(bundle, targets, source)
        tables += [table for _, table in elsewhere if table is not None]
        manifest = bundle.manifest.model_copy(update={"latency": tuple(tables), "steps": tuple(self.steps.records)})
        chosen = choice.choose(manifest, recipe.objective, recipe.max_latency_ms)
        version = self._published(manifest.model_copy(update={"chosen": chosen}))
        self.steps.kept.prune()
        return self.store.open(recipe.name, version, ())

    def _check_version(self) -> None:
        """Refuse at once what `run` would refuse in the end: a version that another recipe has made."""
        version = self.recipe.version
        if version is not None and version in self.known:
            made_with = self.store.manifest(self.recipe.name, version).recipe
            if self.fresh or made_with != self._recipe():
                raise self._taken(version)

    def _taken(self, version: str) -> BuildError:
        return BuildError(
            f"{self.recipe.name} version {version} is already in {self.store.url}; choose another --version"
        )

    def _recipe(self) -> dict[str, Any]:
        return self.recipe.model_dump(mode="json", exclude_defaults=True, exclude={"store"})

    def _published(self, manifest: Manifest) -> str:
        """Write report and manifest, and publish; the version, which is a later one if another build was faster."""
        self.progress("publish", "started")
        logs = [f"{LOGS}/{file.name}" for file in self._files(LOGS)]
        while True:
            (self.folder / REPORT).write_text(report.render(manifest), encoding="utf-8")
            files = (*manifest.files, *(self._file(path) for path in (REPORT, *logs)))
            self._write(manifest.model_copy(update={"files": files}))
            try:
                self.store.publish(self.folder, manifest.name, manifest.version)
            except BuildError:
                later = next_version(self.store, manifest.name)
                if self.recipe.version is not None or later == manifest.version:
                    raise
                manifest = manifest.model_copy(update={"version": later})
                continue
            self.progress("publish", "done", f"version {manifest.version}")
            return manifest.version

    def _same(self, key: str) -> str | None:
        """The version that a build with this key would only repeat, if it was not by accident that a part failed."""
        newest = self.recipe.version or max(self.known, key=version_order, default=None)
        if self.fresh or newest not in self.known or newest is None:
            return None
        manifest = self.store.manifest(self.recipe.name, newest)
        return newest if manifest.key == key and not any(step.died for step in manifest.steps) else None

    def _converted(self, source: Path, reference: Reference, format: Format, precision: Precision) -> Artifact:
        name = f"{format}-{precision}"
        limits = self.recipe.limits_of(precision)
        key = [format, precision, self.content, provenance.of_machine()]
        timing = self.steps.kept.shared("tensorrt-timing")
        try:
            folder, made = self.steps.run(
                f"convert {name}", key, convert, format, precision, reference, source, limits, timing,
                still_good=lambda made: made.limits[0] <= limits.relative_l2 <= made.limits[1],
                detail=lambda made: "; ".join(made.remarks),
            )  # fmt: skip
        except EnginehouseError as error:
            status: Literal["unavailable", "failed"] = (
                "unavailable" if isinstance(error, EngineUnavailable) else "failed"
            )
            return Artifact(name=name, format=format, precision=precision, status=status, reason=str(error))
        link(sorted(folder.iterdir()), self.folder / name)
        return Artifact(
            name=name,
            format=format,
            precision=precision,
            status="ready",
            files=tuple(self._file(f"{name}/{file.name}") for file in self._files(name)),
            requires=made.requires,
            remarks=made.remarks,
            limit=self.recipe.limits.get(precision),
            int8_products=int8_products() if precision == "int8" and format != "tensorrt" else None,
        )

    def _verified(
        self, bundle: Bundle, artifact: Artifact, source: Path, reference: Reference
    ) -> tuple[Artifact, tuple[EngineKind, ...]]:
        """The artifact with its parity and final status, and the engines of this machine that it passed on."""
        if artifact.status != "ready" or (artifact.format == "tensorrt" and self.on_node is not None):
            return artifact, ()
        recipe = self.recipe
        limits = recipe.limits_of(artifact.precision)
        files = [file.sha256 for file in artifact.files]
        # What requests may be decides what is asked beyond the samples.
        may_be = [reference.max_rows, reference.axes, sorted(recipe.axes), reference.paddings]
        own = [limits.relative_l2, recipe.max_drop, recipe.threads, may_be]
        key = [files, self.content, self.judging, own, provenance.of_machine()]
        try:
            _, judged = self.steps.run(
                f"verify {artifact.name}", key, verify, bundle, artifact.name, reference, source, limits,
                recipe.max_drop, recipe.threads, detail=_verdict,
            )  # fmt: skip
        except EnginehouseError as error:
            return artifact.model_copy(update={"status": "failed", "reason": str(error)}), ()
        if judged.status == "ready":
            self.extents.append(judged.extents)
        told = ("status", "reason", "parity", "effective_precision", "unproven", "inputs_only", "padding")
        update = {name: getattr(judged, name) for name in told} | {"remarks": artifact.remarks + judged.remarks}
        return artifact.model_copy(update=update), judged.kinds

    def _made_on_node(
        self, on_node: OnNode, bundle: Bundle, artifact: Artifact
    ) -> tuple[Artifact, LatencyTable | None]:
        """A TensorRT artifact as the GPU node built, verified and measured it; others as they are."""
        if artifact.format != "tensorrt" or artifact.status != "ready":
            return artifact, None
        name = f"make {artifact.name} on a GPU node"
        self.progress(name, "started")
        began = time.monotonic()
        try:
            made = on_node(order_of(bundle, artifact.name))
        except ConversionFailed as error:
            self.steps.ended(Step(name=name, outcome="failed", detail=str(error), seconds=time.monotonic() - began))
            return artifact.model_copy(update={"status": "failed", "reason": str(error), "files": ()}), None
        done = taken_over(made, artifact, self.folder, self.recipe.limits_of(artifact.precision))
        detail = done.reason or "; ".join(made.remarks)
        self.steps.ended(Step(name=name, outcome="done", detail=detail, seconds=time.monotonic() - began))
        return done, made.table

    def _profiled(self, bundle: Bundle, targets: Sequence[Target], source: Path) -> list[LatencyTable]:
        """Latency tables of all `targets`; measured together, because only times of one run are compared."""
        if not targets:
            return []
        manifest, recipe = bundle.manifest, self.recipe
        requests = [sha256_of(source / SAMPLES), manifest.max_batch, [axis.model_dump() for axis in manifest.axes]]
        conditions = [requests, recipe.threads, provenance.of_machine()]
        kept = KeptTables(self.steps.kept, bundle, conditions)
        known = {} if self.fresh else kept.known(targets)
        if len(known) == len(targets):
            self.steps.ended(Step(name="profile", outcome="cached"))
            return [known[target] for target in targets]
        # A target may need several times its budget, and all of them together have the time of one step.
        budget_s = min(profile.BUDGET_S, recipe.step_timeout_s / (6 * len(targets)))
        key = [conditions, [identity(bundle, target) for target in targets], recipe.quick]
        try:
            _, (tables, faults) = self.steps.run(
                "profile", key, measured_beside, bundle, targets, known, source / SAMPLES, recipe.threads, budget_s,
                recipe.quick, still_good=is_quick,
            )  # fmt: skip
        except EnginehouseError:
            # The bundle is right without it, and the step says why the figures are missing.
            return []
        kept.keep(tables)
        for (kind, artifact), fault in faults.items():
            self.steps.ended(Step(name=f"profile {artifact} on {kind}", outcome="failed", detail=fault))
        return list(tables)

    def _manifest(self, version: str, key: str, reference: Reference, artifacts: Sequence[Artifact]) -> Manifest:
        return Manifest(
            name=self.recipe.name,
            version=version,
            created=provenance.now(),
            source=f"{self.recipe.source} ({reference.origin})",
            signature=SignatureRecord.of(reference.signature),
            max_batch=reference.max_rows,
            axes=reference.axes,
            preprocess=reference.preprocess,
            postprocess=reference.postprocess,
            remarks=(*reference.remarks, *self.recipe.not_made),
            artifacts=tuple(artifacts),
            versions=provenance.versions(),
            hardware=dict(provenance.hardware()),
            recipe=self._recipe(),
            key=key,
            files=tuple(self._file(path) for path in checks.CHECKS),
        )

    def _files(self, folder: str) -> list[Path]:
        return sorted(file for file in (self.folder / folder).glob("*") if file.is_file())

    def _file(self, path: str) -> File:
        file = self.folder / path
        return File(path=path, sha256=sha256_of(file), bytes=file.stat().st_size)

    def _write(self, manifest: Manifest) -> Bundle:
        (self.folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
        return Bundle.open(self.folder)


def _verdict(judged: Verified) -> str:
    if judged.status != "ready" or judged.parity is None:
        return f"{judged.status}: {judged.reason}"
    metric = judged.parity.metric
    scored = f", {metric.name} {metric.value:.4f} ({metric.reference:.4f})" if metric else ""
    return f"relative L2 {judged.parity.relative_l2:.1e}{scored} on {', '.join(judged.kinds)}"


def _silent(stage: str, outcome: Outcome, detail: str = "") -> None:
    """The progress of a build that nobody watches."""
