"""Old path, kept for one release: live deployments start their replicas from `enginehouse.pool.Pool`."""

from __future__ import annotations

from enginehouse.pools.deployment import Pool

__all__ = ["Pool"]
