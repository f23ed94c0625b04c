"""A router in a client's process, which saves its requests the hop through a deployed router."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from enginehouse.contract.config import APP_NAME, AppConfig
from enginehouse.contract.errors import EnginehouseError, EngineUnavailable, ModelNotFound, NoBackend
from enginehouse.contract.tensors import Tensors
from enginehouse.counts import node as node_counts
from enginehouse.counts.ledger import Ledger
from enginehouse.counts.rows import Rows, ended
from enginehouse.pools import nodes
from enginehouse.routing import replicas
from enginehouse.routing.data_plane import DataPlane
from enginehouse.routing.hints import Hints
from enginehouse.routing.ray_private import job as ray_job
from enginehouse.routing.ray_private import start_no_ray_in_the_background
from enginehouse.routing.remote_versions import RemoteVersions
from enginehouse.routing.router import Router
from enginehouse.routing.view import View

logger = logging.getLogger("ray.serve")

#: Seconds between two reports of what was counted here, while something is.
TELL_S = 1.0
#: Seconds between rounds of connecting to new replicas, and of checking that this process is still in its Ray job.
CONNECT_S = 0.1
#: Errors of a request that the deployed routers then answer. Not ReplicaLost: it may have crashed that replica, which
#: they would not know.
HANDED_OVER = frozenset({ModelNotFound, NoBackend, EngineUnavailable})
#: Seconds until the deployed routers are polled again after a failure.
RETRY_S = 1.0


class LocalRouter:
    """A router on an event loop in a thread of its own, which follows the versions that the deployed routers publish.

    `find` gives the handle of the deployed routers. They answer requests until this one is ready, and those for a model
    that it does not know or whose replicas it cannot reach. It stops (`is_up`) when this process leaves its Ray job;
    what is under way then fails with EngineUnavailable.
    """

    def __init__(self, find: Callable[[], DeploymentHandle]) -> None:
        start_no_ray_in_the_background()
        self.job = ray_job()
        self._find = find
        self._plane: DataPlane | None = None
        self._handle: Any = None
        self._handles: list[DeploymentHandle] = []
        self._loop = asyncio.new_event_loop()
        # Held to start a request and to stop: one that were started on a loop that has stopped would never end.
        self._lock = threading.Lock()
        self._under_way: set[Future[dict[str, Any]]] = set()
        self.is_up = True
        # In memory: this process may be another user's, or on a machine without any router or replica.
        self._counts, self._node = Ledger(None), ""
        # A daemon thread: it must not keep the process alive.
        threading.Thread(target=self._run, name="enginehouse-router", daemon=True).start()

    def submit(
        self, model: str, inputs: Tensors, hints: Hints, version: str | None, here: bool = True
    ) -> Future[dict[str, Any]]:
        """Start a request, from any thread; result and errors are those of the deployed router's `answer`.

        Unless `here`, the deployed routers answer it. Raises EngineUnavailable once this one has stopped.
        """
        with self._lock:
            if not self.is_up:
                raise _gone()
            request = self._answer(model, inputs, hints, version, here)
            answer = asyncio.run_coroutine_threadsafe(request, self._loop)
            self._under_way.add(answer)
        answer.add_done_callback(self._under_way.discard)
        return answer

    def reaches(self, model: str, version: str | None = None) -> bool:
        """Whether a request would be routed here now."""
        plane = self._plane
        try:
            return plane is not None and plane.router.reaches(plane.versions.get(model, version))
        except ModelNotFound:
            return False

    async def _answer(
        self, model: str, inputs: Tensors, hints: Hints, version: str | None, here: bool
    ) -> dict[str, Any]:
        try:
            return await self._answer_until_stopped(model, inputs, hints, version, here)
        except asyncio.CancelledError:
            if self.is_up:
                raise
            # Cancelled by `_live` and not by the caller, who may be a task that is not to end.
            raise _gone() from None

    async def _answer_until_stopped(
        self, model: str, inputs: Tensors, hints: Hints, version: str | None, here: bool
    ) -> dict[str, Any]:
        # Idle pools are woken by the deployed routers only.
        if here and self._plane is not None and self.reaches(model, version):
            try:
                answer = await self._plane.infer("python", model, inputs, hints, version)
                return {"outputs": answer.outputs, **answer.origin()}
            except EnginehouseError as error:
                if type(error) not in HANDED_OVER:
                    raise
                logger.info("the deployed routers take over: %s", error)
        result: dict[str, Any] = await (await self._deployed()).answer.remote(model, dict(inputs), hints, version)
        return result

    async def _deployed(self) -> DeploymentHandle:
        # Used on this event loop only: a handle belongs to the loop of its first call.
        if self._handle is None:
            self._handle = await asyncio.to_thread(self._find)
        return self._handle

    def _run(self) -> None:
        """The thread: the loop lives as long as `_live`."""
        try:
            self._loop.run_until_complete(self._live())
        finally:
            with self._lock:
                self.is_up = False
            for answer in list(self._under_way):
                # Of a request that did not end when it was cancelled.
                if not answer.done():
                    answer.set_exception(_gone())
            self._loop.close()

    async def _live(self) -> None:
        following, connecting = asyncio.create_task(self._follow()), asyncio.create_task(self._connect())
        telling = asyncio.create_task(self._tell_counts())
        while not following.done() and not connecting.done() and ray_job() == self.job:
            await asyncio.wait([following, connecting], timeout=CONNECT_S, return_when=asyncio.FIRST_COMPLETED)
        with self._lock:
            self.is_up = False
        self._plane = None
        await self._shut_handles()
        # Not cancelled: cancelling a call of a Ray that has shut down would start a new Ray.
        following._log_destroy_pending = telling._log_destroy_pending = False  # type: ignore[attr-defined]
        others = asyncio.all_tasks() - {asyncio.current_task(), following, telling}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=RETRY_S)

    async def _follow(self) -> None:
        versions, args, view = RemoteVersions(), None, View({}, None, "")
        # Using a handle of a Ray that has shut down would start a new Ray.
        while ray_job() == self.job:
            try:
                published = await (await self._deployed()).served.remote(versions.tag)
                if published["args"] != args:
                    args, versions = published["args"], RemoteVersions()
                    config = AppConfig.parse(args)
                    self._node = nodes.own_id()
                    view = View(config.pools, None, self._node)
                    handles = {name: serve.get_deployment_handle(name, APP_NAME) for name in config.pools}
                    await self._shut_handles()
                    self._handles = list(handles.values())
                    self._plane = DataPlane(
                        Router(config, versions, view, handles),
                        versions,
                        config.router.max_ongoing_requests,
                        config.router.max_ongoing_bytes,
                        counts=self._counts,
                    )
                    self._plane.hands_over = HANDED_OVER
                versions.receive(published)
                await view.count_nodes()
                # `served` waits for a change, but not while deployed routers differ: then they answer in turns at once.
                await asyncio.sleep(CONNECT_S)
            except Exception as error:
                # For instance the polled router has died; another one answers the next poll.
                logger.info("the deployed routers could not be polled: %s", error)
                await asyncio.sleep(RETRY_S)

    async def _tell_counts(self) -> None:
        """Tell the deployed routers what was counted here, all of them: one that is killed is none the only one."""
        told: Rows = {}
        while ray_job() == self.job:
            await asyncio.sleep(TELL_S)
            if (rows := ended(self._counts.rows())) == told or ray_job() != self.job:
                continue
            plain = node_counts.read(self._counts, self._node)._replace(rows=rows).plain()
            try:
                answers = (
                    (await self._deployed())
                    .broadcast("learn", plain)
                    .results_async(timeout_s=RETRY_S, return_exceptions=True)
                )
                if not any(isinstance(answer, BaseException) for answer in await answers):
                    told = rows
            except Exception as error:
                logger.info("what was counted here could not be told: %s", error)

    async def _shut_handles(self) -> None:
        """Stop the handles' pushing of metrics, which would start a new Ray once this one is gone (Ray Serve 2.60)."""
        for handle in self._handles:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(handle.shutdown_async(), RETRY_S)
        self._handles = []

    async def _connect(self) -> None:
        while True:
            replicas.connect()
            await asyncio.sleep(CONNECT_S)


def _gone() -> EngineUnavailable:
    return EngineUnavailable("Router", "this process has left its Ray job")


_lock = threading.Lock()
_routers: list[LocalRouter] = []


def of_this_process(find: Callable[[], DeploymentHandle]) -> LocalRouter:
    """The local router of this process's present Ray job, made at the first call; known replicas are per process."""
    with _lock:
        if not _routers or _routers[-1].job != ray_job() or not _routers[-1].is_up:
            _routers[:] = [LocalRouter(find)]
        return _routers[-1]
