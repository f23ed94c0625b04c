"""A fixed number of things of which each is used by one caller at a time (infer requests, execution contexts)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from enginehouse.contract.errors import EngineUnavailable

T = TypeVar("T")


class Slots(Generic[T]):
    """Lends `items` one by one; who finds none free waits. `dispose` is called once per item after `close`.

    `engine` is the name in the EngineUnavailable that `use` raises once the slots are closed.
    """

    def __init__(self, engine: str, items: Iterable[T], dispose: Callable[[T], None] = lambda _: None) -> None:
        self._engine = engine
        self._dispose = dispose
        self._lock = threading.Lock()
        self._closed = False
        # None means closed: each waiting caller that takes it puts it back for the next one.
        self._free: SimpleQueue[T | None] = SimpleQueue()
        for item in items:
            self._free.put(item)

    @contextmanager
    def use(self) -> Iterator[T]:
        """Lend one item. Raises EngineUnavailable after `close`, also to those who wait."""
        item = None if self._closed else self._free.get()
        if item is None:
            self._free.put(None)
            raise EngineUnavailable(self._engine, "it was closed")
        try:
            yield item
        finally:
            with self._lock:
                closed = self._closed
                if not closed:
                    self._free.put(item)
            if closed:
                self._dispose(item)

    def close(self) -> None:
        """Dispose of the free items now and of the lent ones when they come back. May be called twice."""
        items = []
        with self._lock:
            self._closed = True
            while True:
                try:
                    items.append(self._free.get_nowait())
                except Empty:
                    break
            self._free.put(None)
        for item in items:
            if item is not None:
                self._dispose(item)
