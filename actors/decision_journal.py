"""The last decisions of admission with their numbers, and who is kept waiting: kept always, told while somebody looks.

What is kept of a request is what is shown of it: never its prompt.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from actors.messages import Decision, DecisionFact, WaitingFacts
from policies.admission import Defer
from policies.views import spaced
from policies.vocabulary import Request

__all__ = ["KEPT_DECISIONS", "DecisionJournal"]

KEPT_DECISIONS = 200


class DecisionJournal:
    """`unix_s` is the time of day of what is noted."""

    def __init__(self) -> None:
        #: Decisions that were noted ever: the number of the newest.
        self.noted = 0
        self._kept: deque[DecisionFact] = deque(maxlen=KEPT_DECISIONS)
        self._waiting: dict[str, tuple[tuple[str, str, int], float | None]] = {}  # of whom, and its latest start

    def deferred(self, request: Request, verdict: Defer, unix_s: float) -> None:
        """It is kept waiting; `decided` tells of its end."""
        latest = None if request.ttft_s is None else verdict.deadline_s
        self._waiting[request.id] = (request.tenant, request.model, request.tier), latest
        self._note(
            request,
            unix_s,
            outcome="deferred",
            reason=verdict.reason.value,
            message=f"it waits for room: its first token is foreseen after {verdict.predicted_ttft_s:.3f} s",
            measured=None,
            threshold=None,
            predicted_ttft_s=verdict.predicted_ttft_s,
            predicted_tpot_s=verdict.predicted_tpot_s,
            retry_after_s=None,
            deferred_s=None,
        )

    def decided(self, request: Request, decision: Decision, unix_s: float) -> None:
        """It is admitted or refused."""
        was_deferred = self._waiting.pop(request.id, None) is not None
        is_refused = decision.outcome == "refused"
        self._note(
            request,
            unix_s,
            outcome=decision.outcome,
            reason=decision.reason,
            message=decision.message,
            measured=decision.measured if is_refused else None,
            threshold=decision.threshold if is_refused else None,
            predicted_ttft_s=decision.predicted_ttft_s,
            predicted_tpot_s=decision.predicted_tpot_s,
            retry_after_s=decision.retry_after_s,
            deferred_s=decision.deferred_s if was_deferred else None,
        )

    def _note(
        self,
        request: Request,
        unix_s: float,
        *,
        outcome: str,
        reason: str,
        message: str,
        measured: float | None,
        threshold: float | None,
        predicted_ttft_s: float | None,
        predicted_tpot_s: float | None,
        retry_after_s: float | None,
        deferred_s: float | None,
    ) -> None:
        self.noted += 1
        self._kept.append(
            DecisionFact(
                unix_s,
                request.id,
                request.tenant,
                request.tier,
                request.model,
                outcome,
                reason,
                message,
                measured,
                threshold,
                predicted_ttft_s,
                predicted_tpot_s,
                request.ttft_s,
                retry_after_s,
                deferred_s,
                len(request.prompt) // 4,
                request.max_tokens,
            )
        )

    def since(self, number: int) -> tuple[int, list[DecisionFact]]:
        """The number of the first decision after the `number`-th that is kept, and all from it on, oldest first."""
        count = min(len(self._kept), max(0, self.noted - number))
        return self.noted - count + 1, list(islice(self._kept, len(self._kept) - count, None))

    def waiting(self, now: float) -> list[WaitingFacts]:
        """How many wait, by tenant, model and tier, and for how long those with a promise still may. `now` is on the
        clock of the verdicts."""
        groups: dict[tuple[str, str, int], list[float | None]] = {}
        for group, latest in self._waiting.values():
            groups.setdefault(group, []).append(latest)
        told = []
        for group, starts in sorted(groups.items()):
            slacks = sorted(latest - now for latest in starts if latest is not None)
            told.append(WaitingFacts(*group, len(starts), len(slacks), spaced(slacks)))
        return told
