"""The router in another process than the deployed ones: for clients, which save the hop to those."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from ray import serve
from ray.serve.handle import DeploymentHandle

from enginehouse.contract.config import APP_NAME, AppConfig
from enginehouse.contract.errors import EngineUnavailable, ModelNotFound, NoBackend
from enginehouse.contract.tensors import Tensors
from enginehouse.pools import nodes
from enginehouse.routing import replicas
from enginehouse.routing.data_plane import DataPlane
from enginehouse.routing.hints import Hints
from enginehouse.routing.ray_private import job as ray_job
from enginehouse.routing.remote_versions import RemoteVersions
from enginehouse.routing.router import Router
from enginehouse.routing.view import View

logger = logging.getLogger("ray.serve")

#: How often replicas without a connection are connected to, and it is looked whether Ray is still there.
CONNECT_S = 0.1
#: How long a router that could not be asked is left alone.
RETRY_S = 1.0

T = TypeVar("T")


class LocalRouter:
    """A router with an event loop of its own, which follows what the deployed ones serve; `find` gives their handle.

    Until it is ready, and where it does not know a model or reaches no replica, it has the deployed ones answer. It
    ends with the connection to Ray.
    """

    def __init__(self, find: Callable[[], DeploymentHandle]) -> None:
        self.job = ray_job()
        self._find = find
        self._plane: DataPlane | None = None
        self._handle: Any = None
        self._handles: list[DeploymentHandle] = []
        self._loop = asyncio.new_event_loop()
        # It has to end with the process, whatever it waits for.
        threading.Thread(target=self._loop.run_forever, name="enginehouse-router", daemon=True).start()
        self.is_up = True
        self.run(self._keep())

    def run(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Have the router's event loop do something."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def answer(self, model: str, inputs: Tensors, hints: Hints, version: str | None) -> dict[str, Any]:
        """As the deployed router's `answer`. Raises what that raises, too."""
        # What is idle is woken, and waited for, by the deployed ones.
        if self._plane is not None and self._reaches(self._plane, model, version):
            try:
                answer = await self._plane.infer("python", model, inputs, hints, version)
                return {"outputs": answer.outputs, **answer.origin()}
            except (ModelNotFound, NoBackend, EngineUnavailable) as error:
                logger.info("asking the deployed routers: %s", error)
        result: dict[str, Any] = await (await self._deployed()).answer.remote(model, dict(inputs), hints, version)
        return result

    @staticmethod
    def _reaches(plane: DataPlane, model: str, version: str | None) -> bool:
        try:
            return plane.router.reaches(plane.versions.get(model, version))
        except ModelNotFound:
            return False

    async def _deployed(self) -> DeploymentHandle:
        # All calls by it are made on this event loop: a handle belongs to the one that it is first used in.
        if self._handle is None:
            self._handle = await asyncio.to_thread(self._find)
        return self._handle

    async def _keep(self) -> None:
        following, connecting = asyncio.create_task(self._follow()), asyncio.create_task(self._connect())
        while not following.done() and not connecting.done() and ray_job() == self.job:
            await asyncio.wait([following, connecting], timeout=CONNECT_S, return_when=asyncio.FIRST_COMPLETED)
        self.is_up, self._plane = False, None
        await self._let_go()
        # A call that Ray no longer knows is left as it is: to cancel it would start a new Ray.
        following._log_destroy_pending = False  # type: ignore[attr-defined]
        others = asyncio.all_tasks() - {asyncio.current_task(), following}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        self._loop.stop()

    async def _follow(self) -> None:
        versions, args, view = RemoteVersions(), None, View({}, None, "")
        # What belongs to a connection that has ended would start a new Ray when it is used.
        while ray_job() == self.job:
            try:
                published = await (await self._deployed()).served.remote(versions.tag)
                if published["args"] != args:
                    args, versions = published["args"], RemoteVersions()
                    config = AppConfig.parse(args)
                    view = View(config.pools, None, nodes.own_id())
                    handles = {name: serve.get_deployment_handle(name, APP_NAME) for name in config.pools}
                    await self._let_go()
                    self._handles = list(handles.values())
                    self._plane = DataPlane(
                        Router(config, view, handles),
                        versions,
                        config.router.max_ongoing_requests,
                        config.router.max_ongoing_bytes,
                    )
                versions.receive(published)
                await view.count_nodes()
                # Routers that serve different things answer at once, each in its turn.
                await asyncio.sleep(CONNECT_S)
            except Exception as error:
                # The router that was asked is gone, say; another one knows as well.
                logger.info("what is served could not be asked: %s", error)
                await asyncio.sleep(RETRY_S)

    async def _let_go(self) -> None:
        """Have Serve stop pushing the handles' metrics: without a Ray it would start one for that (Ray Serve 2.60)."""
        for handle in self._handles:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(handle.shutdown_async(), RETRY_S)
        self._handles = []

    async def _connect(self) -> None:
        while True:
            replicas.connect()
            await asyncio.sleep(CONNECT_S)


_lock = threading.Lock()
_routers: list[LocalRouter] = []


def of_this_process(find: Callable[[], DeploymentHandle]) -> LocalRouter:
    """The one for the Ray job that this process is part of: what replicas there are is known once a process."""
    with _lock:
        if not _routers or _routers[-1].job != ray_job():
            _routers[:] = [LocalRouter(find)]
        return _routers[-1]
