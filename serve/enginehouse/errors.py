"""Old path, kept for one release: clients and jobs import errors from here."""

from __future__ import annotations

from enginehouse.contract.errors import *  # noqa: F403
