"""Old path, kept for one release: live controllers name their policy by it."""

from __future__ import annotations

from enginehouse.pools.autoscaling import BUSY, DEMAND, HardwareAndLoad

__all__ = ["BUSY", "DEMAND", "HardwareAndLoad"]
