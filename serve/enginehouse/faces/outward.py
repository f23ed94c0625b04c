"""What a client is told of an error, the same over every face: what is inside stays in the log, under a number."""

from __future__ import annotations

import logging
import re
import uuid

from enginehouse.contract.errors import EnginehouseError, ModelNotFound
from enginehouse.contract.shown import placeless
from enginehouse.routing.admission.callers import ANYBODY, Caller
from enginehouse.routing.failover import THRICE_LOST, TWICE_LOST

logger = logging.getLogger("ray.serve")

#: What may be an id of a request, given by its client.
_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)


def told(error: Exception, given_id: str, where: str, caller: Caller = ANYBODY) -> str:
    """The text for the client, this `caller`, who asked for `where`.

    Of our own errors it names the value and the way out, without the places of this machine where the fault is ours. Of
    any other, and of an engine's, it has the number under which the log says why: `given_id`, if that can be one.
    """
    if not isinstance(error, EnginehouseError) or error.status == 500:
        return _kept_inside(error, given_id, where)
    if isinstance(error, ModelNotFound):
        error = caller.shown(error)
    text = str(error) or type(error).__name__
    return placeless(text) if error.status > 500 else text


def _kept_inside(error: Exception, given_id: str, where: str) -> str:
    number = given_id if _ID.fullmatch(given_id) else uuid.uuid4().hex[:16]
    # Those of our own errors say what happened; the traceback of another one, where.
    trace = None if isinstance(error, EnginehouseError) else error
    logger.error("request %s to %s: %s: %s", number, where, type(error).__name__, error, exc_info=trace)
    what = type(error).__name__ if isinstance(error, EnginehouseError) else "internal error"
    for lost in (TWICE_LOST, THRICE_LOST):
        if str(error).startswith(lost):
            what = f"{what}: {lost}"
    return f"{what}: the reason is in the server's log under request {number}"
