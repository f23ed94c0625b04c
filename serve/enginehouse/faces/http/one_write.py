"""An answer in one write, without uvicorn's look at every header of it.

uvicorn writes the headers and the body each by itself, and uvloop (since 0.22) hands every write to the kernel at once:
each wakes the proxy and takes a TCP segment. And it searches every name and value of our headers for what may not be in
one. Together that is a sixth of what an answer of a small model costs a router (uvicorn 0.54).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

_END = b"\r\n"


def written(send: Any, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes | memoryview) -> bool:
    """Write a whole response, with a `content-length` among its headers; False where `send` has to do it.

    That is where the server is not uvicorn, cannot write just now, or a header has a line break in it.
    """
    cycle = cycle_of(send)
    if cycle is None or cycle.response_started or cycle.flow.write_paused:
        return False
    if cycle.disconnected:
        return True
    lines = [STATUS_LINE[status]]
    for name, value in (*cycle.default_headers, *headers):
        lines += (name, b": ", value, _END)
    if not cycle.keep_alive:
        lines.append(b"connection: close\r\n")
    lines.append(_END)
    head = b"".join(lines)
    if head.count(b"\n") != len(cycle.default_headers) + len(headers) + 2 + (not cycle.keep_alive):
        return False
    # What uvicorn does when it has sent the last of a body.
    cycle.response_started = cycle.response_complete = True
    cycle.transport.write(b"".join((head, body)))
    cycle.message_event.set()
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()
    return True


def cycle_of(call: Any) -> RequestResponseCycle | None:
    """What uvicorn keeps of the request whose `send` or `receive` this is; None where the server is not uvicorn."""
    cycle = getattr(call, "__self__", None)
    return cycle if type(cycle) is RequestResponseCycle else None
