"""Which version of each model answers: follows the catalog, reads manifests, and switches when a successor is warm."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from enginehouse.contract.config import Catalog, ModelConfig
from enginehouse.contract.errors import ModelNotFound, NoBackend
from enginehouse.contract.manifest import Manifest
from enginehouse.contract.numerics import left_out
from enginehouse.contract.shown import redacted
from enginehouse.contract.store import Store
from enginehouse.routing import replicas
from enginehouse.routing.view import RESIDENT, BackendKind, BackendStatus, ModelVersion, View

#: Seconds for which a version that is warm on one pool waits for another pool that loads it, before it takes over.
PATIENCE_S = 60.0
#: Seconds until a manifest that could not be read is tried again.
RETRY_AFTER_S = 5.0
#: Manifests that are read at once, and seconds after which a read is reported as failed; it is taken if it ends later.
READS_AT_ONCE, READ_WITHIN_S = 8, 10.0
#: Seconds between two comparisons of the pools' reports with the catalog, and while there is nothing to come.
PERIOD_S, REST_S = 0.1, 0.5
#: Seconds between two looks for replicas that are new or gone.
CONNECT_S = 0.25
#: Seconds between two counts of the nodes with each pool's hardware: an RPC, so never on a request's path.
COUNT_NODES_S = 1.0

#: Seconds between two looks for pools that should have replicas; one follows each change of the catalog.
WAKE_PERIOD_S = 5.0

State = Literal["ready", "loading", "failed"]


@dataclass(slots=True)
class _Read:
    manifest: Future[Manifest]
    began: float = field(default_factory=time.monotonic)


class Versions(Protocol):
    """Which version answers for a model."""

    def get(self, model: str, version: str | None = None) -> ModelVersion:
        """Raises ModelNotFound, or NoBackend for a version that is not warm yet."""
        ...

    def wanted(self, model: str) -> str:
        """The version that is to answer for a model of the catalog; "" where that is not known."""
        ...


class Answering:
    """Versions that answer, by model and version; for a model alone the one that answers when none is named."""

    def __init__(self, versions: Iterable[ModelVersion] = ()) -> None:
        self._versions = {version.config.name: version for version in versions}
        self._by_name: dict[tuple[str, str | None], ModelVersion] = {}
        for name, version in self._versions.items():
            self._by_name[name, None] = self._by_name[name, version.config.version] = version

    def __iter__(self) -> Iterator[ModelVersion]:
        return iter(self._versions.values())

    def get(self, model: str, version: str | None = None) -> ModelVersion | None:
        """The one that answers, if one does. On the path of every request."""
        return self._by_name.get((model, version))

    def ids(self) -> tuple[str, ...]:
        """`name@version` of all, sorted."""
        return tuple(sorted(version.config.id for version in self))


class LiveVersions:
    """The versions of the catalog that answer. One that cannot be loaded leaves the one before it in place.

    So does one that fails to load where that one is live, be it in a single pool, unless it is `forced`. Versions are
    told apart by `ModelConfig.key`: other numerics or another batch size of the same version is loaded beside the one
    that answers, and takes over when it is warm. Pools that have something to load and no replicas are started with
    `wake`.
    """

    def __init__(self, view: View, wake: Callable[[str], None] = lambda _: None) -> None:
        self._view = view
        self._wake = wake
        self._wake_at = 0.0
        self._catalog = Catalog(store="")
        self.answering = Answering()
        # By model: what is to answer next. By key: why its manifest cannot be read, when that is tried again, and since
        # when it has been warm somewhere.
        self._coming: dict[str, ModelVersion] = {}
        self._unreadable: dict[str, str] = {}
        self._retry_at: dict[str, float] = {}
        self._warm_since: dict[str, float] = {}
        # By key: where it failed to load, until it is live there or there is nothing to load. It is tried again now and
        # then, and no better for that.
        self._failed: dict[str, set[str]] = {}
        # By store, id and digest: reads under way. A thread cannot be stopped: a store that hangs keeps its threads,
        # and no read is begun again while it runs. Of their own: other threads of this process must not wait for them.
        self._reads: dict[tuple[str, str, str], _Read] = {}
        self._readers = ThreadPoolExecutor(READS_AT_ONCE, thread_name_prefix="manifests")
        # Whether there is a new catalog to follow.
        self._applied = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._connector: asyncio.Task[None] | None = None

    def apply(self, catalog: Catalog) -> None:
        """Record the catalog and return at once; a model it no longer names stops answering now."""
        self._catalog = catalog
        self.answering = Answering(version for version in self.answering if catalog.find(version.config.name))
        self._coming, self._unreadable, self._retry_at, self._warm_since, self._failed = {}, {}, {}, {}, {}
        self._wake_at = time.monotonic()
        self._applied.set()
        self._view.forget()
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())
            self._connector = asyncio.create_task(_keep_connected())

    def check_health(self) -> None:
        """Raise when a task that follows the catalog or the replicas has died."""
        if self._keeper is not None and self._keeper.done():
            raise RuntimeError("the catalog is no longer followed") from self._keeper.exception()
        if self._connector is not None and self._connector.done():
            raise RuntimeError("replicas are no longer connected to") from self._connector.exception()

    def get(self, model: str, version: str | None = None) -> ModelVersion:
        """See `Versions`."""
        if model in self._coming and self.answering.get(model) is None:
            # Clients that learned from another router that it is ready may be sending requests already.
            self._switch_versions()
        found = self.answering.get(model, version)
        if found is not None:
            return found
        wanted = self._catalog.find(model, version)
        if wanted is not None and self.answering.get(model) is None:
            raise NoBackend(f"model {wanted.id!r} is not warm yet: {self._why_not(wanted)}")
        raise ModelNotFound(model, version, self.answering.ids())

    def models(self) -> list[str]:
        """The models of the catalog."""
        return [model.name for model in self._catalog.models]

    def wanted(self, model: str) -> str:
        """See `Versions`."""
        config = self._catalog.find(model)
        return config.version if config else ""

    def status(self, answers: Callable[[ModelVersion], bool]) -> dict[str, Any]:
        """Models, versions, pools, backends and reasons, as plain data; `answers` says whether a request would be.

        Of each model `ready` is what a request would meet now; `state` is how far what is wanted of it has come, and
        so are its backends.
        """
        return {
            "store": redacted(self._catalog.store),
            "models": [self._model_status(model, answers) for model in self._catalog.models],
            "pools": self._view.pools(),
        }

    def _model_status(self, model: ModelConfig, answers: Callable[[ModelVersion], bool]) -> dict[str, Any]:
        try:
            current: ModelVersion | None = self.get(model.name)
        except NoBackend:
            current = None
        coming = self._coming.get(model.name)
        shown = coming or current
        backends = self._view.backends(shown) if shown else []
        problem = self._unreadable.get(model.key, "")
        if coming is not None and current is not None and (held := self._holding_back(coming, current)):
            problem = f"{current.config.id} goes on, since it is live where {coming.config.id} fails: {', '.join(held)}"
        ready = current is not None and answers(current)
        state: State = "loading"
        if current is not None and current.config == model:
            state = "ready" if ready else "failed"
        elif problem or _is_hopeless({backend.state for backend in backends}):
            state = "failed"
        return {
            "name": model.name,
            "wanted": model.version,
            "serving": current.config.version if current else None,
            "ready": ready,
            "state": state,
            "reason": problem,
            "settings": model.settings(),
            "digest": model.digest,
            "left_out": left_out(shown.manifest, shown.numerics) if shown else "",
            "backends": [asdict(backend) for backend in backends],
        }

    def _why_not(self, model: ModelConfig) -> str:
        if problem := self._unreadable.get(model.key):
            return problem
        coming = self._coming.get(model.name)
        if coming is None:
            return "its manifest is being read"
        return "; ".join(f"{status.pool}: {status.reason or status.state}" for status in self._view.backends(coming))

    async def _keep(self) -> None:
        count_at, counting = 0.0, None
        while True:
            if time.monotonic() >= count_at:
                # While Ray's head is away a count may take minutes: catalogs are followed meanwhile.
                counting = counting or asyncio.create_task(self._view.count_nodes())
                await asyncio.wait([counting], timeout=COUNT_NODES_S)
                if counting.done():
                    counting.result()
                    counting = None
                count_at = time.monotonic() + COUNT_NODES_S
            self._read_manifests(self._catalog)
            self._switch_versions()
            if time.monotonic() >= self._wake_at and not self._reads:
                self._wake_at = time.monotonic() + WAKE_PERIOD_S
                self._wake_cold()
            with suppress(TimeoutError):
                async with asyncio.timeout(PERIOD_S if self._reads or self._coming else REST_S):
                    await self._applied.wait()
            self._applied.clear()

    def _wake_cold(self) -> None:
        """Start the pools that have something to load and no replicas: those without anything to load have none."""
        versions = [*self.answering, *self._coming.values()]
        backends = [backend for version in versions for backend in self._view.backends(version)]
        for pool in {backend.pool for backend in backends if backend.state == "cold"}:
            self._wake(pool)

    def _read_manifests(self, catalog: Catalog) -> None:
        """Take the manifests that have been read, and begin to read those that are missing; waits for none."""
        wanted = {(catalog.store, model.id, model.digest) for model in catalog.models}
        self._reads = {key: read for key, read in self._reads.items() if key in wanted or not read.manifest.done()}
        for model in catalog.models:
            current = self.answering.get(model.name)
            known = model.name in self._coming or (current is not None and current.config == model)
            if known or time.monotonic() < self._retry_at.get(model.key, 0.0):
                continue
            if current is not None and (current.config.id, current.config.digest) == (model.id, model.digest):
                # Only settings changed.
                self._coming[model.name] = ModelVersion(model, current.manifest, current.signature)
                continue
            key = (catalog.store, model.id, model.digest)
            if key not in self._reads:
                self._reads[key] = _Read(self._begin_to_read(catalog.store, model))
            read = self._reads[key]
            if not read.manifest.done():
                if time.monotonic() - read.began > READ_WITHIN_S:
                    self._unreadable[model.key] = redacted(
                        f"store {catalog.store!r} has not answered for {READ_WITHIN_S:g} s"
                    )
                continue
            del self._reads[key]
            try:
                manifest = read.manifest.result()
                coming = ModelVersion(model, manifest, manifest.request_signature())
            except Exception as error:
                # Whatever a filesystem raises: the model's status says so, the others are not held up.
                self._unreadable[model.key] = redacted(f"{type(error).__name__}: {error}")
                self._retry_at[model.key] = time.monotonic() + RETRY_AFTER_S
                continue
            self._unreadable.pop(model.key, None)
            self._coming[model.name] = coming

    def _begin_to_read(self, store: str, model: ModelConfig) -> Future[Manifest]:
        return self._readers.submit(lambda: Store(store).manifest(model.name, model.version, model.digest))

    def _switch_versions(self) -> None:
        for name, coming in list(self._coming.items()):
            current = self.answering.get(name)
            # The same is loaded already, or it is live or idle and waits for no other pool.
            if (current is not None and current.key == coming.key) or self._is_warm(coming, current):
                others = (version for version in self.answering if version.config.name != name)
                self.answering = Answering([*others, self._coming.pop(name)])

    def _holding_back(self, coming: ModelVersion, current: ModelVersion) -> list[str]:
        """Where what is `coming` failed to load and `current` is live: taking over would lose that backend."""
        failed = self._failed.setdefault(coming.key, set())
        for backend in self._view.backends(coming):
            if backend.state == "failing":
                failed.add(_place(backend))
            elif backend.state != "loading":
                failed.discard(_place(backend))
        if not failed or coming.config.forced:
            return []
        live = {_place(backend) for backend in self._view.backends(current) if backend.state == "live"}
        return sorted(failed & live)

    def _is_warm(self, coming: ModelVersion, current: ModelVersion | None) -> bool:
        if current is not None and self._holding_back(coming, current):
            return False
        backends = self._view.backends(coming)
        states = {backend.state for backend in backends}
        if "live" not in states and ("idle" not in states or states & {"loading", "failing", "cold"}):
            return False
        since = self._warm_since.setdefault(coming.key, time.monotonic())
        waited = time.monotonic() - since > PATIENCE_S
        return current is None or waited or all(backend.state != "loading" for backend in backends)


def _place(backend: BackendStatus) -> str:
    """The pool, or this process, whichever engine it has."""
    return "routers" if backend.pool.startswith(RESIDENT) else backend.pool


def _is_hopeless(states: set[BackendKind]) -> bool:
    """Whether none of the pools will load it, as far as is known, and no node can change that."""
    if not states or states & {"live", "loading", "cold", "idle"}:
        return False
    return "failing" in states or "no-hardware" not in states


async def _keep_connected() -> None:
    """Apart from `_keep`, which may wait for Ray's count of the nodes."""
    while True:
        replicas.connect()
        await asyncio.sleep(CONNECT_S)
