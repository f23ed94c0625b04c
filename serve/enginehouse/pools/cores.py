"""The cores that the engines of one process compute with: every call takes some, and others wait while none is free."""

from __future__ import annotations

from typing import Protocol


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

    @property
    def is_idle(self) -> bool:
        """Whether nothing computes, and nobody waits to."""
        return self.free == self.count and not self._rooms

    def take(self, most: int) -> int:
        """Take up to `most` of the free cores; `give` must follow. 0 when there is none."""
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
