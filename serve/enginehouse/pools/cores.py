"""The cores that the engines of one process compute with: every call takes some, and others wait while none is free."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Protocol

from enginehouse.pools.line import Item
from enginehouse.pools.yielding import RECENT_S

#: Seconds after its last call for which a model counts as one that others share the cores with.
COMPANY_S = 1.0


class Room(Protocol):
    """Where calls of one model wait for cores, or for all others to leave them."""

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
        #: The piece of a call of the last priority that computes; see `yielding`.
        self.piece: Item | None = None
        # Where such calls wait, in turn.
        self._last_rooms: dict[Room, None] = {}
        # When a call of any other priority came or ended.
        self._others_at = -math.inf
        self._next_look: asyncio.Handle | None = None
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

    def note_other(self) -> None:
        """A call has come or ended that is not of the last priority."""
        self._others_at = time.monotonic()

    @property
    def others_call(self) -> bool:
        """Whether there are calls now that are not of the last priority, or were lately."""
        return time.monotonic() - self._others_at < RECENT_S

    def wait_last(self, room: Room) -> None:
        """Have `room` look whenever all others are done, until `done_last`."""
        self._last_rooms.setdefault(room)

    def done_last(self, room: Room) -> None:
        """No call of the last priority waits in `room` any more."""
        self._last_rooms.pop(room, None)

    def end_piece(self, piece: Item) -> None:
        """If it is this piece that computed, it is done, and it is another model's turn."""
        if self.piece is piece:
            self.piece = None
            self._look_last_soon()

    def _look_last_soon(self) -> None:
        # In a turn of its own: what has arrived meanwhile goes first.
        if self._last_rooms and self._next_look is None:
            self._next_look = asyncio.get_running_loop().call_soon(self._look_last)

    def _look_last(self) -> None:
        self._next_look = None
        for room in list(self._last_rooms):
            if not self.is_idle or self.piece is not None:
                return
            # Behind the others, if it still waits after this.
            self._last_rooms.pop(room)
            self._last_rooms[room] = None
            room.look()

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
        self._look_last_soon()

    def wait(self, room: Room) -> None:
        """Have `room` look whenever cores are given back, until it is done."""
        self._rooms.add(room)

    def done(self, room: Room) -> None:
        """Nobody waits in `room` any more."""
        self._rooms.discard(room)
        if self.is_idle:
            self._look_last_soon()
