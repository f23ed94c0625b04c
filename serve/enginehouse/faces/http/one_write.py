"""An answer in one write: uvicorn writes the headers and the body each by itself.

uvloop (since 0.22) hands every write to the kernel at once, and so each wakes the proxy and takes a TCP segment of its
own: two of them are a tenth of what an answer of a small model costs a router.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any


class OneWrite:
    """`with OneWrite(send):` gathers what is written to the client's connection in the block, and writes it at its end.

    `send` is the one that uvicorn has made for a request. With another server's it changes nothing.
    """

    __slots__ = ("_cycle", "_written", "transport")

    def __init__(self, send: Any) -> None:
        self._cycle: Any = getattr(send, "__self__", None)
        self.transport: Any = getattr(self._cycle, "transport", None)
        self._written: list[bytes] = []

    def __enter__(self) -> None:
        if self.transport is not None:
            self._cycle.transport = self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.transport is not None:
            self._cycle.transport = self.transport
            self._flush()

    def write(self, data: bytes) -> None:
        """Keep it; see `asyncio.WriteTransport.write`."""
        self._written.append(data)

    def close(self) -> None:
        """Write what was kept, and close the connection."""
        self._flush()
        self.transport.close()

    def is_closing(self) -> bool:
        """See `asyncio.BaseTransport.is_closing`."""
        closing: bool = self.transport.is_closing()
        return closing

    def _flush(self) -> None:
        if self._written:
            self.transport.write(b"".join(self._written))
            self._written = []
