"""The last few hundred steps of a scheduler, and whose tokens they computed: kept always, told while somebody looks.

A tuple a step and a count a row: 64 rows cost a hundredth of a millisecond, a step takes tens of milliseconds.
"""

from __future__ import annotations

from collections import Counter, deque
from itertools import islice

from actors.messages import StepFact
from actors.step_notes import StepNote

__all__ = ["KEPT_STEPS", "StepJournal"]

KEPT_STEPS = 400
#: Tokens are counted in periods of so many seconds, and so many full ones are summed up.
_PERIOD_S = 5.0
_PERIODS = 12
#: Over which a rate of steps is measured.
_RATE_S = 2.0

#: worker, number, at, prefill tokens, decode tokens, rows, predicted seconds, actual seconds
_Kept = tuple[str, int, float, int, int, int, float, float]


class StepJournal:
    """A `StepObserver`. Its instants are those of the notes: seconds of the scheduler's monotonic clock."""

    def __init__(self) -> None:
        #: Steps that were noted ever: the number of the newest.
        self.noted = 0
        self._steps: deque[_Kept] = deque(maxlen=KEPT_STEPS)
        self._served: deque[tuple[int, Counter[str]]] = deque(maxlen=_PERIODS + 1)

    def stepped(self, note: StepNote) -> None:
        """Keep it."""
        self.noted += 1
        decodes = note.decode_tokens
        self._steps.append(
            (
                note.worker,
                note.number,
                note.at,
                note.prefill_tokens,
                decodes,
                note.rows,
                note.predicted_s,
                note.actual_s,
            )
        )
        period = int(note.at / _PERIOD_S)
        if not self._served or self._served[-1][0] != period:
            self._served.append((period, Counter()))
        served = self._served[-1][1]
        served.update([request.tenant for request in islice(note.requests(), decodes)])
        for request, tokens in note.chunks():
            served[request.tenant] += tokens

    def since(self, number: int, *, unix_offset_s: float) -> tuple[int, list[StepFact]]:
        """The number of the first step after the `number`-th that is kept, and all from it on, oldest first.

        `unix_offset_s`: added to an instant it gives unix seconds.
        """
        count = min(len(self._steps), max(0, self.noted - number))
        facts = [
            StepFact(worker, step, at + unix_offset_s, prefill, decode, rows, predicted_s, actual_s)
            for worker, step, at, prefill, decode, rows, predicted_s, actual_s in islice(
                self._steps, len(self._steps) - count, None
            )
        ]
        return self.noted - count + 1, facts

    def rates(self, now: float) -> dict[str, float]:
        """Steps a second of each worker that had one in the last seconds, as far back as steps are kept."""
        if not self._steps:
            return {}
        since = max(now - _RATE_S, self._steps[0][2] if len(self._steps) == KEPT_STEPS else -1e18)
        counts: Counter[str] = Counter()
        for step in reversed(self._steps):
            if step[2] < since:
                break
            counts[step[0]] += 1
        over_s = max(now - since, 1e-3)
        return {worker: count / over_s for worker, count in counts.items()}

    def served(self, now: float) -> dict[str, int]:
        """Tokens computed by tenant, in the last minute and what is under way of the present period."""
        oldest = int(now / _PERIOD_S) - _PERIODS
        total: Counter[str] = Counter()
        for period, counts in self._served:
            if period >= oldest:
                total.update(counts)
        return dict(total)
