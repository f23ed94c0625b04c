"""Old path, kept for one release: request routers of live deployments name it."""

from __future__ import annotations

from enginehouse.transport.router_end import Address, Channel

__all__ = ["Address", "Channel"]
