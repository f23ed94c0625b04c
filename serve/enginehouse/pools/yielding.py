"""Yielding: calls of the last priority, as scoring jobs make them, are computed in what all others leave.

1. They wait apart from the others: one is let in only while no other call waits or computes in the process, of
   whatever model, and shares no engine call with any.
2. While others have called within `RECENT_S`, they are computed in pieces, one at a time in the process: an other call
   that comes meanwhile waits for the rest of one piece. A piece takes about `SHARE` of what a call of others takes
   here, or `PIECE_S` where that is more, and has one row at least. It takes no cores: calls of other models begin
   beside it.
3. While nobody else calls they are computed as any others, in full batches on all lanes.
4. However busy others are, one piece goes before them whenever `TIMES` times what a piece takes (`OVERDUE_S` at least)
   have passed without any: they end at last, at the cost of a hundredth of the time.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import numpy as np

from enginehouse.contract.tensors import Computed, Tensors, Timing

#: Seconds for which others count as calling: whoever asks once a minute finds short pieces, and not a full batch.
RECENT_S = 60.0
#: Share of what an other call takes for which it may have to wait; seconds that a piece may take in any case, about as
#: much as a call takes on its way here.
SHARE, PIECE_S = 0.2, 0.0005
#: How many times as long as a piece takes, and how many seconds at least, others go before all that wait.
TIMES, OVERDUE_S = 100.0, 1.0
#: Weight of the newest other call in the moving average of what they take.
NEWEST = 0.1


class Pieces:
    """How many rows a piece has of one model's calls, and when the next is overdue; learns from what calls take."""

    def __init__(self) -> None:
        self._rows = 1.0
        self._others_s = 0.0
        self._piece_s = 0.0
        # When the last piece began, or the first of those that wait came.
        self._since = math.inf

    @property
    def rows(self) -> int:
        """Rows of the next piece."""
        return int(self._rows)

    def note_other(self, seconds: float) -> None:
        """Learn from an other call that was computed for so long."""
        self._others_s += (seconds - self._others_s) * (NEWEST if self._others_s else 1.0)

    def note(self, rows: int, seconds: float) -> None:
        """Learn from a piece of so many rows."""
        self._piece_s = seconds
        may_take_s = max(PIECE_S, SHARE * self._others_s)
        # The rest of a call, which may be a few rows only, says nothing of more of them.
        if rows >= self.rows or seconds > may_take_s:
            self._rows = max(1.0, min(2.0 * rows, rows * may_take_s / max(seconds, 1e-6)))

    def wait(self, now: float) -> None:
        """One waits from `now` on, if none has before."""
        self._since = min(self._since, now)

    def begin(self, now: float, some_wait: bool) -> None:
        """A piece begins, and perhaps others still wait."""
        self._since = now if some_wait else math.inf

    @property
    def overdue_at(self) -> float:
        """When one that waits goes before all others, a time of `time.monotonic`."""
        return self._since + max(OVERDUE_S, TIMES * self._piece_s)


async def in_pieces(
    inputs: Tensors, rows: int, ask: Callable[[Tensors, int], Awaitable[tuple[int, Computed]]]
) -> Computed:
    """The answer to `inputs`, of `rows` rows, which are asked for one piece after the other.

    `ask` is given the rest and its rows, and returns of how many of them it has the answer.
    """
    answers: list[Computed] = []
    done = 0
    while done < rows:
        rest = {name: array[done:] for name, array in inputs.items()} if done else inputs
        count, answer = await ask(rest, rows - done)
        answers.append(answer)
        done += count
    if len(answers) == 1:
        return answers[0]
    outputs = {name: np.concatenate([part[name] for part, _ in answers]) for name in answers[0][0]}
    timings = [timing for _, timing in answers]
    return outputs, Timing(
        queue_ms=sum(timing.queue_ms for timing in timings),
        compute_ms=sum(timing.compute_ms for timing in timings),
        batch_rows=max(timing.batch_rows for timing in timings),
    )


def first_rows(inputs: Tensors, rows: int) -> Tensors:
    """The first so many rows of all `inputs`."""
    return {name: array[:rows] for name, array in inputs.items()}
