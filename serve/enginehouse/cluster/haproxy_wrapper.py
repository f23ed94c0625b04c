"""Becomes the HAProxy of a local cluster, which then ends with the server that started the cluster.

Ray's processes end with the one that started them; HAProxy would stay on its port, and forward to whoever takes the
freed ports of the routers. This one is replaced by `exec`, since Ray looks at the pid that it started. It runs anew for
each change of the configuration, by haproxy_wrapper.sh, so it imports nothing but what starts in milliseconds.

Before, it adds to the configuration what Ray has no setting for: every request and health check carries the key of the
cluster, without which its routers answer nobody, the address may be one of IPv6, and have TLS, what HAProxy itself
answers where a router is lost is an error that can be tried again, as JSON, and not Ray's 500, the head of a request
has to come within `HEAD_S`, one address may not have all connections, and nobody else may administrate it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator

#: The real binary, and the process of `enginehouse serve`; the key and its header; where to listen instead, and
#: with which options for TLS.
TLS = "ENGINEHOUSE_TLS"
BINARY, SERVER, BIND = "ENGINEHOUSE_HAPROXY", "ENGINEHOUSE_SERVER_PID", "ENGINEHOUSE_BIND"
KEY, HEADER = "ENGINEHOUSE_HOUSE_KEY", "x-house-key"
#: Seconds for the head of a request, from its first byte or the connection on.
HEAD_S = 10
#: Seconds for which the client of a gRPC stream may have nothing to say: it waits for an event, or watches health.
STREAM_S = 3600
_PR_SET_PDEATHSIG = 1
#: Where clients come in.
_FRONTENDS = "frontend http_frontend", "frontend grpc_frontend"
_LOST = b'{"error":"the router of this request was lost or is not there; try again"}'
#: A request is pure: whoever gets this may send it again.
LOST = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_LOST), _LOST)
)


def main() -> None:
    """Take the signal for the end of the process that started this one (Ray's actor), and become HAProxy."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # Who ended before the signal was set is no parent any more: the one that adopted this process is not of Ray.
    if not _is_of_ray(os.getppid()):
        sys.exit("the process of Ray that wanted HAProxy is gone")
    try:
        os.kill(int(os.environ[SERVER]), 0)
    except ProcessLookupError:
        sys.exit("the server that wanted HAProxy is gone")
    arguments = sys.argv[1:]
    # In place: Ray knows its HAProxy by this path, and writes the file anew before each start.
    path = arguments[arguments.index("-f") + 1]
    lost = os.path.join(os.path.dirname(path), "503.http")  # noqa: PTH118, PTH120
    with open(lost, "wb") as answer:  # noqa: PTH123
        answer.write(LOST)
    with open(path, "r+", encoding="utf-8") as file:  # noqa: PTH123
        text = completed(file.read(), os.environ[KEY], os.environ.get(BIND), lost, os.environ.get(TLS))
        file.seek(0)
        file.truncate()
        file.write(text)
    os.execv(os.environ[BINARY], [os.environ[BINARY], *arguments])


def _is_of_ray(process: int) -> bool:
    try:
        with open(f"/proc/{process}/cmdline", "rb") as command:  # noqa: PTH123
            return command.read(5) == b"ray::"
    except OSError:
        return False


def completed(text: str, key: str, bind: str | None = None, lost: str | None = None, tls: str | None = None) -> str:
    """The configuration with the key in requests and health checks, listening at the host `bind` if that is given.

    `lost` is the file of what HAProxy answers for a router that does not; `tls` are options for listening.
    """
    return text if HEADER in text else "\n".join(_lines(text, key, bind, lost, tls)) + "\n"


def _lines(text: str, key: str, bind: str | None, lost: str | None, tls: str | None) -> Iterator[str]:
    section, most = "", 0
    for line in text.splitlines():
        if line and not line[0].isspace():
            section = line.strip()
        word = line.strip()
        if word.startswith("maxconn ") and section == "global":
            most = int(word.split()[1])
        if word.startswith("stats socket "):
            yield line.replace(" mode 666 ", " mode 600 ")
        elif word.startswith("errorfile ") and lost:
            yield f"    errorfile {word.split()[1]} {lost}"
        elif word.startswith("bind ") and section in _FRONTENDS:
            if bind:
                _, address, *options = word.split()
                host, *more = bind.split()
                # As Ray has it but for the host.
                line = " ".join(["    bind", f"{host}:{address.rpartition(':')[2]}", *more, *options])
            # gRPC is HTTP/2 alone.
            yield f"{line} {tls} alpn {'h2,http/1.1' if section == _FRONTENDS[0] else 'h2'}" if tls else line
            yield from _of_one_address(most * 3 // 4)
            # In the place of what the client has sent.
            yield f"    http-request set-header {HEADER} {key}"
            if section == _FRONTENDS[1]:
                yield f"    timeout client {STREAM_S}s"
        else:
            yield line
        if word.startswith("timeout client ") and section == "defaults":
            yield f"    timeout http-request {HEAD_S}s"
        elif word.startswith("option httpchk"):
            yield f"    http-check send hdr {HEADER} {key}"


def _of_one_address(most: int) -> Iterator[str]:
    """At most so many connections of one address."""
    if most:
        yield "    stick-table type ipv6 size 64k expire 1m store conn_cur"
        yield "    tcp-request connection track-sc0 src"
        yield f"    tcp-request connection reject if {{ sc0_conn_cur gt {most} }}"


if __name__ == "__main__":
    main()
