"""The cores that the engines of one process compute with: every call takes some, and others wait while none is free."""

from __future__ import annotations

import time
from typing import Protocol

#: Seconds after its last call for which a model counts as one that others share the cores with.
COMPANY_S = 1.0


class Room(Protocol):
    """Where calls of one model wait for cores."""

    @property
    def oldest(self) -> float:
        """When the one that waits longest arrived, a time of `time.monotonic`; infinite when none waits."""
        ...

    def look(self) -> None:
        """Let in whom the free cores allow."""
        ...


class Cores:
    """`count` cores that rooms share. Used on one event loop."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.free = count
        self._rooms: set[Room] = set()
        # Whose call was the last one, and when; and when another's before.
        self._last: Room | None = None
        self._last_at = self._other_at = -COMPANY_S

    @property
    def is_idle(self) -> bool:
        """Whether nothing computes, and nobody waits to."""
        return self.free == self.count and not self._rooms

    def has_company(self, room: Room) -> bool:
        """Whether calls of other rooms compute here as well, or did a moment ago, or wait."""
        other_at = self._other_at if self._last is room else self._last_at
        return time.monotonic() - other_at < COMPANY_S or len(self._rooms - {room}) > 0

    def take(self, most: int, room: Room | None = None) -> int:
        """Take up to `most` of the free cores for `room`; `give` must follow. 0 when there is none."""
        if self._last is not room:
            self._last, self._other_at = room, self._last_at
        self._last_at = time.monotonic()
        taken = min(most, self.free)
        self.free -= taken
        return taken

    def give(self, taken: int) -> None:
        """Give back what `take` returned, first to the room whose oldest call waits longest."""
        self.free += taken
        for room in sorted(self._rooms, key=lambda room: room.oldest):
            if not self.free:
                return
            room.look()

    def wait(self, room: Room) -> None:
        """Have `room` look whenever cores are given back, until it is done."""
        self._rooms.add(room)

    def done(self, room: Room) -> None:
        """Nobody waits in `room` any more."""
        self._rooms.discard(room)
