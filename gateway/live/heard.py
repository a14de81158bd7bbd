"""What schedulers and admission told lately, numbered anew: the steps and decisions of all of them in one row each.

The bus loses messages, and a gateway may begin to listen at any moment. So what is told is numbered by its teller, and
where a number is missing everything that is kept is asked for once more; what is lost even then stays lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import TypeVar

from actors.messages import AdmissionFacts, DecisionFact, SchedulerFacts
from actors.runtime import Context
from gateway.live.frame import DecisionRow, StepRow
from policies.vocabulary import Tier

__all__ = ["MOST_DECISIONS", "MOST_STEPS", "Heard", "milliseconds"]

T = TypeVar("T")

MOST_STEPS = 400
MOST_DECISIONS = 200
#: Facts come four times a second; those of one that was silent for so long are not shown any more.
_STALE_S = 2.0
#: After so many messages that do not follow on what is known, all is asked for again: the answer was lost.
_ASK_AGAIN = 6


def milliseconds(seconds: float | None) -> float | None:
    """To a microsecond; None stays None."""
    return None if seconds is None else round(seconds * 1000, 3)


class _Told:
    """How far one teller has been heard, in one run of it."""

    __slots__ = ("last", "run", "unfit")

    def __init__(self, run: int) -> None:
        self.run = run
        self.last = 0
        self.unfit = 0  # messages in a row that did not follow on what is known


class Heard:
    """`clock` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._told: dict[str, _Told] = {}
        self._schedulers: dict[str, tuple[float, SchedulerFacts]] = {}
        self._admissions: dict[str, tuple[float, AdmissionFacts]] = {}
        self._steps: deque[StepRow] = deque(maxlen=MOST_STEPS)
        self._decisions: deque[DecisionRow] = deque(maxlen=MOST_DECISIONS)
        #: How many were ever heard: the number of the newest.
        self.steps_heard = 0
        self.decisions_heard = 0
        #: Something was missed: whoever asks everybody for all that they keep takes it back.
        self.lacks = False

    # --- from the bus

    def heard_scheduler(self, facts: SchedulerFacts, ctx: Context) -> None:
        self._schedulers[ctx.sender] = (self._clock(), facts)
        for step in facts.steps[self._new(ctx, facts.first, len(facts.steps), whole=facts.whole) :]:
            self.steps_heard += 1
            self._steps.append(
                StepRow(
                    model=facts.model,
                    worker=step.worker,
                    number=step.number,
                    at=round(step.at_unix_s, 4),
                    prefill_tokens=step.prefill_tokens,
                    decode_tokens=step.decode_tokens,
                    rows=step.rows,
                    predicted_ms=round(step.predicted_s * 1000, 3),
                    actual_ms=round(step.actual_s * 1000, 3),
                )
            )

    def heard_admission(self, facts: AdmissionFacts, ctx: Context) -> None:
        self._admissions[ctx.sender] = (self._clock(), facts)
        for decision in facts.decisions[self._new(ctx, facts.first, len(facts.decisions), whole=facts.whole) :]:
            self.decisions_heard += 1
            self._decisions.append(_decision_row(self.decisions_heard, decision))

    def _new(self, ctx: Context, first: int, count: int, *, whole: bool) -> int:
        """How many of the `count` that were told are to be skipped: the known; all, while earlier ones are awaited."""
        told = self._told.get(ctx.sender)
        if told is None or told.run != ctx.run:
            told = self._told[ctx.sender] = _Told(ctx.run)
        if first > told.last + 1 and not whole:
            self.lacks |= told.unfit % _ASK_AGAIN == 0
            told.unfit += 1
            return count
        told.unfit = 0
        known = max(0, told.last + 1 - first)
        told.last = max(told.last, first + count - 1)
        return known

    # --- for frames

    def schedulers(self) -> list[SchedulerFacts]:
        """Of every scheduler that was heard lately, by model."""
        since = self._clock() - _STALE_S
        self._schedulers = {name: heard for name, heard in self._schedulers.items() if heard[0] > since}
        return sorted((facts for _, facts in self._schedulers.values()), key=lambda facts: facts.model)

    def admissions(self) -> list[AdmissionFacts]:
        """Of every admission that was heard lately."""
        since = self._clock() - _STALE_S
        self._admissions = {name: heard for name, heard in self._admissions.items() if heard[0] > since}
        return [facts for _, facts in self._admissions.values()]

    def is_complete(self, models: Collection[str]) -> bool:
        """Whether admission and a scheduler of each model were heard lately."""
        heard = {facts.model for facts in self.schedulers()}
        return bool(self.admissions()) and heard.issuperset(models)

    def steps(self, after: int) -> list[StepRow]:
        """Those after the `after`-th, oldest first, as far as they are kept."""
        return _newest(self._steps, self.steps_heard - after)

    def decisions(self, after: int) -> list[DecisionRow]:
        """Those after the `after`-th, oldest first, as far as they are kept."""
        return _newest(self._decisions, self.decisions_heard - after)


def _newest(kept: deque[T], count: int) -> list[T]:
    start = max(0, len(kept) - count)
    return list(kept)[start:] if start < len(kept) else []


def _decision_row(sequence: int, decision: DecisionFact) -> DecisionRow:
    return DecisionRow(
        sequence=sequence,
        at=round(decision.at_unix_s, 4),
        request=decision.request,
        tenant=decision.tenant,
        tier=Tier(decision.tier).name,
        model=decision.model,
        outcome=decision.outcome,
        reason=decision.reason,
        message=decision.message,
        measured=decision.measured,
        threshold=decision.threshold,
        predicted_ttft_ms=milliseconds(decision.predicted_ttft_s),
        predicted_tpot_ms=milliseconds(decision.predicted_tpot_s),
        deadline_ms=milliseconds(decision.deadline_s),
        retry_after_ms=milliseconds(decision.retry_after_s),
        deferred_ms=milliseconds(decision.deferred_s),
        prompt_tokens=decision.prompt_tokens,
        max_tokens=decision.max_tokens,
    )
