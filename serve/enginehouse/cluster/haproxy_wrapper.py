"""Becomes the HAProxy of a local cluster, which then ends with the server that started the cluster.

Ray's processes end with the one that started them; HAProxy would stay on its port, and forward to whoever takes the
freed ports of the routers. This one is replaced by `exec`, since Ray looks at the pid that it started. It runs anew for
each change of the configuration, by haproxy_wrapper.sh, so it imports nothing but what starts in milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

#: The real binary, and the process of `enginehouse serve`.
BINARY, SERVER = "ENGINEHOUSE_HAPROXY", "ENGINEHOUSE_SERVER_PID"
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Take the signal for the end of the process that started this one (Ray's actor), and become HAProxy."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    try:
        os.kill(int(os.environ[SERVER]), 0)
    except ProcessLookupError:
        # Killed before the signal was set.
        sys.exit("the server that wanted HAProxy is gone")
    os.execv(os.environ[BINARY], [os.environ[BINARY], *sys.argv[1:]])


if __name__ == "__main__":
    main()
