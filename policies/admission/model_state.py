"""What admission knows of one model: its workers, who waits for them, how full they are, what was promised lately."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from policies.admission.deferred import DeferredQueue
from policies.admission.fairness import FairLine
from policies.admission.fleet import Fleet
from policies.admission.reasons import Reason
from policies.admission.verdict import Candidate, Policy, Refuse
from policies.admission.worker_state import Reservation
from policies.overload import Ladder, Level, Rungs
from policies.vocabulary import Request

__all__ = ["ModelState", "Waiting"]

#: So long the tightest promises that came are kept.
_LATELY_S = 10.0


class Waiting:
    """A deferred request, and its claim as a newcomer's forecast must see it."""

    __slots__ = ("candidate", "claim", "request")

    def __init__(self, request: Request, candidate: Candidate, claim: Reservation) -> None:
        self.request, self.candidate, self.claim = request, candidate, claim


class ModelState:
    """What admission knows of one model, and what follows for a candidate."""

    __slots__ = (
        "_ladder",
        "_looked_at_s",
        "_paces",
        "_policy",
        "_ttft",
        "deferred",
        "fair",
        "fleet",
        "level",
        "pressure",
    )

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.fleet = Fleet()
        self.deferred: DeferredQueue[Waiting] = DeferredQueue(policy.queue_size, share=policy.queue_share)
        # Apart for requests under contract and without: these yield to those in any case.
        self.fair = {
            binds: FairLine(window_s=policy.fair_window_s, least=policy.fair_room, most=policy.fair_most)
            for binds in (True, False)
        }
        self._ladder = None if policy.ladder is None or policy.kind != "contract" else Ladder(policy.ladder)
        self.level = Level.calm
        self.pressure = 0.0
        self._looked_at_s = -inf
        # The tightest that came lately, and when.
        self._ttft: tuple[float, float] | None = None
        self._paces: dict[int, tuple[float, float]] = {}  # by tier

    def promised(self, candidate: Candidate, now: float) -> None:
        """A candidate under contract came."""
        self._ttft = _tightest(self._ttft, candidate.ttft_s, now)
        pace = _tightest(self._paces.get(candidate.tier), candidate.tpot_s, now)
        if pace is not None:
            self._paces[candidate.tier] = pace

    def climb(self, now: float) -> None:
        """Look at the pressure, five times a dwell at most."""
        rungs = self._policy.ladder
        if self._ladder is None or rungs is None or now - self._looked_at_s < rungs.dwell_s / 5:
            return
        self._looked_at_s = now
        self.pressure = self.fleet.pressure(None if self._ttft is None else self._ttft[0])
        self.level = self._ladder.level(now, self.pressure)

    def kept_pace_s(
        self, candidate: Candidate, room: float, now: float, tightest_tpot_s: Callable[[], float | None]
    ) -> float | None:
        """The pace that a candidate must leave possible: without a contract or above its fair line, the tightest that
        any tenant was promised; else the tightest that a higher class came with lately. A batch that grew to the pace
        of a lower class would shut a higher one out; one that grew to the pace of its own leaves no room for prompts,
        so where the room of others is steered it is of the pace too."""
        higher = self._pace_above(candidate.tier, now)
        if candidate.binds and not room:
            return higher
        any_pace = tightest_tpot_s()
        pace = min((pace for pace in (higher, any_pace) if pace is not None), default=None)
        if pace is None or not room or not self.fair[candidate.binds].steered:
            return pace
        c = self.fleet.any_load().step_time
        empty_s = max(c.floor_s, c.base_s + c.per_token_s) + c.per_row_s
        return pace - room * max(0.0, pace - empty_s)

    def overloaded(self, jitter: float) -> Refuse:
        """The refusal of what has no contract, from that rung on. `jitter` in [0, 1) spreads the retries."""
        rungs = self._policy.ladder or Rungs()
        return Refuse(
            reason=Reason.overloaded,
            measured=self.pressure,
            threshold=rungs.enter[Level.refuse - 1] - rungs.gap,
            retry_after_s=max(self._policy.retry_floor_s, 2 * rungs.dwell_s * (0.5 + jitter)),
        )

    def must_leave_room(self, candidate: Candidate, now: float) -> bool:
        """Whether its tenant is above its fair line, and another that asks is not."""
        return self.fair[candidate.binds].must_leave_room(candidate.tenant, now)

    def cost_s(self, candidate: Candidate, outputs: int) -> float:
        """The device seconds that it takes with so many outputs, as its share of full steps."""
        c = self.fleet.any_load().step_time
        prompt = candidate.prompt_tokens
        reading = c.per_row_s + c.per_context_s * (prompt + outputs / 2)
        return prompt * (c.per_token_s + c.per_attended_s * prompt / 2) + outputs * (c.per_token_s + reading)

    def _pace_above(self, tier: int, now: float) -> float | None:
        """The tightest pace that came lately in a class above."""
        paces = (pace for of, (pace, at) in self._paces.items() if of < tier and now - at <= _LATELY_S)
        return min(paces, default=None)


def _tightest(kept: tuple[float, float] | None, seconds: float | None, now: float) -> tuple[float, float] | None:
    if seconds is None:
        return kept
    return (seconds, now) if kept is None or seconds <= kept[0] or now - kept[1] > _LATELY_S else kept
