"""The build, start to end: reference -> convert -> verify -> profile -> choose -> report -> publish.

Artifacts stand alone: what goes wrong with one is recorded in its status and reason, and the others go on. Every step
runs in a process of its own (`isolate`) and is kept by the content of its inputs (`cache`), so that a build that was
killed, or asks for one precision more, repeats only what it has to.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

from enginehouse import archive
from enginehouse.bundle import MANIFEST, Bundle, sha256_of
from enginehouse.engines.verify import CHECK_ANSWERS, CHECK_REQUESTS
from enginehouse.errors import BuildError, EnginehouseError, EngineUnavailable
from enginehouse.latency import LatencyTable
from enginehouse.manifest import Artifact, EngineKind, File, Format, Manifest, Precision, SignatureRecord, Step
from enginehouse.store import Store, version_order
from enginehouse_build import choice, profile, provenance, report
from enginehouse_build.cache import StepCache, code_digest, digest_of, link, versions
from enginehouse_build.convert import convert
from enginehouse_build.isolate import Bounds, StepDied, run
from enginehouse_build.recipe import Recipe, next_version
from enginehouse_build.reference import ANSWERS, REQUESTS, SAMPLES, Reference, make_reference
from enginehouse_build.verify import Verified, verify

_T = TypeVar("_T")
Outcome: TypeAlias = Literal["started", "done", "cached", "failed", "unavailable"]
REPORT = "report.html"
LOGS = "logs"
#: Bytes of requests that a bundle carries along for engines that are verified elsewhere.
_CHECK_BYTES = 32 << 20


class Progress(Protocol):
    """Told about each stage twice: when it starts, and how it ended."""

    def __call__(self, stage: str, outcome: Outcome, detail: str = "") -> None: ...


def build(recipe: Recipe, progress: Progress | None = None, *, fresh: bool = False) -> Bundle:
    """Run `recipe` and return the published bundle, or the newest one if it was made from the very same.

    `fresh` makes everything again. Raises BuildError (ExportFailed for the source) when nothing can be served; the
    store is unchanged then, as it is after Ctrl-C or a crash.
    """
    store = Store(recipe.store)
    known = store.versions(recipe.name)
    with contextlib.ExitStack() as stack:
        staging = store.staging()
        stack.callback(shutil.rmtree, staging, ignore_errors=True)
        return _Build(recipe, store, known, staging, progress or _silent, StepCache(), fresh).run()


@dataclass(slots=True)
class _Build:
    recipe: Recipe
    store: Store
    known: list[str]
    staging: Path
    progress: Progress
    cache: StepCache
    fresh: bool
    steps: list[Step] = field(default_factory=list)
    #: Digest of the reference: all later steps depend on it.
    content: str = ""

    @property
    def folder(self) -> Path:
        # A folder of its own: the staging folder is private to this user, a published bundle is not.
        return self.staging / "bundle"

    def run(self) -> Bundle:
        recipe = self.recipe
        (self.folder / LOGS).mkdir(parents=True)
        source, reference = self._step(
            "reference", provenance.of_reference(recipe), make_reference, recipe, still_good=provenance.is_current
        )
        self.content = digest_of(provenance.of_files(source))
        asked = recipe.model_dump(mode="json", exclude={"store", "version"})
        key = digest_of(self.content, asked, versions(), code_digest(), provenance.of_machine())
        if (same := self._same(key)) is not None:
            self.progress("publish", "cached", f"version {same} was built from the very same")
            return self.store.open(recipe.name, same, ())
        version = recipe.version or next_version(self.store, recipe.name)
        if version in self.known:
            raise BuildError(
                f"{recipe.name} version {version} is already in {self.store.url}; choose another --version"
            )

        artifacts = [self._converted(source, reference, *wanted) for wanted in recipe.matrix]
        self._carry_checks(source, artifacts)
        manifest = self._manifest(version, key, reference, artifacts)
        bundle = self._write(manifest)
        judged = [self._verified(bundle, artifact, source, reference) for artifact in artifacts]
        artifacts = [artifact for artifact, _ in judged]
        if not any(artifact.status in ("ready", "unverified") for artifact in artifacts):
            reasons = "; ".join(f"{artifact.name} is {artifact.status}: {artifact.reason}" for artifact in artifacts)
            raise BuildError(f"no artifact of {recipe.name} can be served: {reasons}")
        bundle = self._write(manifest.model_copy(update={"artifacts": tuple(artifacts)}))
        targets = [(kind, artifact.name) for artifact, kinds in judged for kind in kinds]
        tables = self._profiled(bundle, targets, source, reference)
        manifest = bundle.manifest.model_copy(update={"latency": tuple(tables), "steps": tuple(self.steps)})
        chosen = choice.choose(manifest, recipe.objective, recipe.max_latency_ms)
        manifest = manifest.model_copy(update={"chosen": chosen})
        (self.folder / REPORT).write_text(report.render(manifest), encoding="utf-8")
        logs = [f"{LOGS}/{file.name}" for file in self._files(LOGS)]
        files = (*manifest.files, *(self._file(path) for path in (REPORT, *logs)))
        self._write(manifest.model_copy(update={"files": files}))
        self.progress("publish", "started")
        self.store.publish(self.folder, recipe.name, version)
        self.progress("publish", "done", f"version {version}")
        self.cache.prune()
        return self.store.open(recipe.name, version, ())

    def _same(self, key: str) -> str | None:
        """The version that a build with this key would only repeat, if it was not by accident that a part failed."""
        newest = self.recipe.version or max(self.known, key=version_order, default=None)
        if self.fresh or newest not in self.known or newest is None:
            return None
        manifest = self.store.manifest(self.recipe.name, newest)
        return newest if manifest.key == key and not any(step.died for step in manifest.steps) else None

    def _step(
        self,
        name: str,
        key: Any,
        function: Callable[..., _T],
        *arguments: Any,
        still_good: Callable[[_T], bool] = lambda _: True,
        detail: Callable[[_T], str] = lambda _: "",
    ) -> tuple[Path, _T]:
        """Files and result of `function(folder, *arguments)`: from the cache, or made by a process of its own."""
        self.progress(name, "started")
        key = digest_of(function.__qualname__, key, versions(), code_digest())
        log = f"{LOGS}/{name.replace(' ', '-')}.log"
        found = None if self.fresh else self.cache.get(key)
        if found is not None and still_good(found.result):
            shutil.copyfile(found.log, self.folder / log)
            self._ended(Step(name=name, outcome="cached", detail=detail(found.result), log=log))
            return found.files, found.result
        began = time.monotonic()
        bounds = Bounds(self.recipe.step_timeout_s, self.recipe.memory_mib)
        with self.cache.staging() as entry:
            try:
                ran = run(function, entry / "files", *arguments, log=entry / "log", bounds=bounds)
            except EnginehouseError as error:
                self._ended(
                    Step(
                        name=name,
                        outcome="unavailable" if isinstance(error, EngineUnavailable) else "failed",
                        detail=str(error),
                        seconds=time.monotonic() - began,
                        log=log,
                        died=isinstance(error, StepDied),
                    )
                )
                raise
            finally:
                shutil.copyfile(entry / "log", self.folder / log)
            done = self.cache.put(key, entry, ran.value)
        told = detail(ran.value)
        self._ended(Step(name=name, outcome="done", detail=told, seconds=ran.seconds, peak_mib=ran.peak_mib, log=log))
        return done.files, ran.value

    def _ended(self, step: Step) -> None:
        self.steps.append(step)
        self.progress(step.name, step.outcome, step.detail)

    def _converted(self, source: Path, reference: Reference, format: Format, precision: Precision) -> Artifact:
        name = f"{format}-{precision}"
        key = [format, precision, self.content, provenance.of_machine()]
        timing = self.cache.shared("tensorrt-timing")
        try:
            folder, made = self._step(
                f"convert {name}", key, convert, format, precision, reference, source, timing,
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
        )

    def _verified(
        self, bundle: Bundle, artifact: Artifact, source: Path, reference: Reference
    ) -> tuple[Artifact, tuple[EngineKind, ...]]:
        """The artifact with its parity and final status, and the engines of this machine that it passed on."""
        if artifact.status != "ready":
            return artifact, ()
        recipe = self.recipe
        limits = recipe.limits_of(artifact.precision)
        files = [file.sha256 for file in artifact.files]
        own = [limits.relative_l2, recipe.max_drop, recipe.threads]
        key = [files, self.content, own, provenance.of_machine()]
        try:
            _, judged = self._step(
                f"verify {artifact.name}", key, verify, bundle, artifact.name, reference, source, limits,
                recipe.max_drop, recipe.threads, detail=_verdict,
            )  # fmt: skip
        except EnginehouseError as error:
            return artifact.model_copy(update={"status": "failed", "reason": str(error)}), ()
        update = {
            "status": judged.status,
            "reason": judged.reason,
            "parity": judged.parity,
            "effective_precision": judged.effective_precision,
        }
        return artifact.model_copy(update=update), judged.kinds

    def _profiled(
        self, bundle: Bundle, targets: Sequence[tuple[EngineKind, str]], source: Path, reference: Reference
    ) -> list[LatencyTable]:
        """Latency tables of all `targets`; measured together, because only times of one run are compared."""
        if not targets:
            return []
        files = [[kind, [file.sha256 for file in bundle.manifest.artifact(name).files]] for kind, name in targets]
        key = [files, self.content, self.recipe.threads, provenance.of_machine()]
        try:
            _, (tables, faults) = self._step(
                "profile", key, _measure, bundle, targets, source / SAMPLES, self.recipe.threads
            )
        except EnginehouseError:
            # The bundle is right without it, and the step says why the figures are missing.
            return []
        for (kind, artifact), fault in faults.items():
            self._ended(Step(name=f"profile {artifact} on {kind}", outcome="failed", detail=fault))
        return list(tables)

    def _carry_checks(self, source: Path, artifacts: Sequence[Artifact]) -> None:
        """Give the bundle requests and answers, if it has engines that are made or verified elsewhere."""
        if not any(artifact.format == "tensorrt" and artifact.status == "ready" for artifact in artifacts):
            return
        requests, answers = archive.read(source / REQUESTS), archive.read(source / ANSWERS)
        kept, total = 0, 0
        for request in requests:
            total += sum(array.nbytes for array in request.values())
            if kept and total > _CHECK_BYTES:
                break
            kept += 1
        (self.folder / CHECK_REQUESTS).parent.mkdir()
        archive.write(self.folder / CHECK_REQUESTS, requests[:kept])
        archive.write(self.folder / CHECK_ANSWERS, answers[:kept])

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
            remarks=reference.remarks,
            artifacts=tuple(artifacts),
            versions=provenance.versions(),
            hardware=dict(provenance.hardware()),
            recipe=self.recipe.model_dump(mode="json", exclude_defaults=True, exclude={"store"}),
            key=key,
            files=tuple(self._file(path) for path in (CHECK_REQUESTS, CHECK_ANSWERS) if (self.folder / path).exists()),
        )

    def _files(self, folder: str) -> list[Path]:
        return sorted(file for file in (self.folder / folder).glob("*") if file.is_file())

    def _file(self, path: str) -> File:
        file = self.folder / path
        return File(path=path, sha256=sha256_of(file), bytes=file.stat().st_size)

    def _write(self, manifest: Manifest) -> Bundle:
        (self.folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
        return Bundle.open(self.folder)


def _measure(
    _: Path, bundle: Bundle, targets: Sequence[tuple[EngineKind, str]], samples: Path, threads: int
) -> tuple[list[LatencyTable], dict[tuple[EngineKind, str], str]]:
    return profile.measure(bundle, targets, archive.read(samples)[0], threads)


def _verdict(judged: Verified) -> str:
    if judged.status != "ready" or judged.parity is None:
        return f"{judged.status}: {judged.reason}"
    metric = judged.parity.metric
    scored = f", {metric.name} {metric.value:.4f} ({metric.reference:.4f})" if metric else ""
    return f"relative L2 {judged.parity.relative_l2:.1e}{scored} on {', '.join(judged.kinds)}"


def _silent(stage: str, outcome: Outcome, detail: str = "") -> None:
    """The progress of a build that nobody watches."""
