"""Connects to a Ray cluster with the environment variables that serving needs.

Ray and Serve read theirs on import, so this module imports Ray only after setting them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator

from enginehouse.cluster import light, proxies
from enginehouse.cluster.home import has_token, private_token, token_is_given
from enginehouse.cluster.owners import cluster_of_this_user, clusters_of_this_machine, token_variables
from enginehouse.cluster.ports import answers
from enginehouse.contract.config import SERVING_ENV
from enginehouse.contract.errors import ConfigError

#: What a command does when it is ended must not start a cluster: a call of Ray would, once this one is shut down.
NO_OTHER_RAY = {"RAY_ENABLE_AUTO_CONNECT": "0"}


@contextlib.contextmanager
def connected(address: str) -> Iterator[str]:
    """Connect this process to the running cluster at `address` for the context, which is told where that is.

    `auto` is `RAY_ADDRESS`, or the one of this user on this machine. A cluster of which a node of this user runs here
    is sent the token that this node has; any other one only what the environment names, or asks for with
    `RAY_AUTH_MODE=token`: that of the home would let whoever gets it into this user's clusters. Raises ConfigError when
    there is none, or several for `auto` or only other users', or one that asks for a token that it is not sent, and
    RuntimeError when Ray was imported already.
    """
    check_ray_is_not_imported()
    wanted = SERVING_ENV | NO_OTHER_RAY
    os.environ.update({name: value for name, value in wanted.items() if name not in os.environ})
    if address == "auto":
        # Not left to Ray, which takes any user's.
        address = os.environ.get("RAY_ADDRESS") or cluster_of_this_user(clusters_of_this_machine()) or address
    ours = token_variables(address)
    if ours is not None and not token_is_given():
        os.environ.update({name: value for name, value in ours.items() if name not in os.environ})
    if has_token():
        private_token()
        if ours is not None or token_is_given():
            # Ray uses the token by itself only with `auto`; a cluster without authentication ignores it.
            os.environ.setdefault("RAY_AUTH_MODE", "token")
    host, _, port = address.rpartition(":")
    os.environ.update(proxies.exceptions([*proxies.THIS_MACHINE, *filter(None, [host])]))
    light.without_pandas()
    import ray

    quiet()
    if host and port.isdecimal() and not answers(host, int(port)):
        # Ray itself takes more than a minute to fail.
        raise ConfigError(f"nothing listens at {address!r}; start a cluster with `enginehouse serve`")
    from enginehouse.cluster import ray_private, tokens

    tokens.check(address)
    ray_private.errors_as_records()
    try:
        ray.init(address=address, job_config=ray_private.Job(), log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        # Not before: most commands have the right one.
        tokens.check_sent(address)
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"no Ray cluster at {address!r}: {reason}; start one with `enginehouse serve`") from None
    try:
        yield address
    finally:
        # What Serve has in the background of a process that asked something finds Ray gone, and says so in tracebacks.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        ray.shutdown()


def check_ray_is_not_imported() -> None:
    """Raise RuntimeError when Ray was imported, and has read its environment, before ours was set."""
    if "ray" in sys.modules:
        raise RuntimeError("Ray was imported before the environment that it reads on import was set")


def quiet() -> None:
    """Drop log records of Serve and Ray Data below WARNING from this process's output."""
    # A filter, since Serve resets the level of its logger.
    for name in ("ray.serve", "ray.data"):
        logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.WARNING)
