"""A door that decides nothing: it gives every request the answer that it got in another run, save one that is flipped.

What would have become of a request, had it alone been treated otherwise? Two runs tell, that differ in one decision. If
admission went on deciding, it would answer to the flip: under overload the room of whoever is taken out goes to the
next, so that nobody's absence would help anybody, and nobody's presence would cost. So here all others are let in (at
the same instants, to the same workers, on the same terms) or refused as they were, and what is left is the effect of
the one request on the device.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from heapq import heappop, heappush
from math import inf

import msgspec

from policies.admission import Admit, Decided, Defer, Reason, Refuse, Verdict
from policies.admission.verdict import candidate_of
from policies.catalog import PolicySet
from policies.overload import Level
from policies.vocabulary import Request
from simulator.door import Door, Knowledge
from simulator.records import Outcome, Workload
from simulator.worker import SimulatedWorker

__all__ = ["Decision", "RecordingDoor", "ScriptedDoor"]


class Decision(msgspec.Struct, frozen=True):
    """What a door said of a request."""

    verdict: Admit | Refuse
    at_s: float
    deferred: bool  # first
    outputs: int  # that were expected of it; 0: nothing was


class RecordingDoor(Door):
    """The real one. It adds every decision to `decisions`, by request, in the order in which they are made, and every
    change of the overload ladder to `levels`, with its instant."""

    def __init__(
        self,
        policies: PolicySet,
        workload: Workload,
        workers: Sequence[SimulatedWorker],
        *,
        knowledge: Knowledge,
        length_noise: float,
        seed: int,
        decisions: MutableMapping[str, Decision],
        levels: list[tuple[float, Level]] | None = None,
    ) -> None:
        self._levels = [] if levels is None else levels
        super().__init__(policies, workload, workers, knowledge=knowledge, length_noise=length_noise, seed=seed)
        self._decisions, self._quantile = decisions, policies.admission.outputs_quantile

    def arrive(self, request: Request, now: float) -> Verdict:
        """See `Door`."""
        verdict = super().arrive(request, now)
        if not isinstance(verdict, Defer):
            self._note(request, verdict, now, deferred=False)
        return verdict

    def due(self, now: float) -> list[Decided]:
        """See `Door`."""
        decided = super().due(now)
        for one in decided:
            self._note(one.request, one.verdict, now, deferred=True)
        return decided

    def level_at(self, now: float) -> Level:
        """See `Door`."""
        level = super().level_at(now)
        if level is not (self._levels[-1][1] if self._levels else Level.calm):
            self._levels.append((now, level))
        return level

    def _note(self, request: Request, verdict: Admit | Refuse, now: float, *, deferred: bool) -> None:
        if isinstance(verdict, Admit):
            outputs = verdict.outputs
        else:
            outputs = self.lengths.expected(candidate_of(request, now), self._quantile)
            outputs = outputs if outputs < request.max_tokens else 0
        self._decisions[request.id] = Decision(verdict, now, deferred, outputs)


class ScriptedDoor:
    """A door that replays `decisions`, and `levels` of the overload ladder. A flip is a fork's own."""

    def __init__(
        self,
        policies: PolicySet,
        workload: Workload,
        workers: Sequence[SimulatedWorker],
        *,
        knowledge: Knowledge,
        length_noise: float,
        seed: int,
        decisions: Mapping[str, Decision],
        levels: Sequence[tuple[float, Level]] = (),
    ) -> None:
        self._decisions = decisions
        self._order = {request: number for number, request in enumerate(decisions)}
        self._pending: list[tuple[float, int, Request]] = []  # deferred, a heap
        self._flipped: set[str] = set()
        self._levels, self._climbed = levels, 0

    @property
    def shared(self) -> tuple[object, ...]:
        """See `AnyDoor`."""
        return self._decisions, self._order, self._levels

    @property
    def deferred(self) -> int:
        """See `AnyDoor`."""
        return len(self._pending)

    @property
    def next_s(self) -> float:
        """See `AnyDoor`."""
        decided_s = self._pending[0][0] if self._pending else inf
        return min(decided_s, self._levels[self._climbed][0]) if self._climbed < len(self._levels) else decided_s

    def flip(self, request: str) -> None:
        """A request that has yet to come is treated the other way: refused if it was let in (at once, though it may
        have been deferred), and let in at its arrival, under its contract, if it was refused."""
        self._flipped.add(request)

    def arrive(self, request: Request, now: float) -> Verdict:
        """See `AnyDoor`."""
        decision = self._decisions[request.id]
        if request.id in self._flipped:
            return self._other(request, decision)
        if not decision.deferred:
            return decision.verdict
        heappush(self._pending, (decision.at_s, self._order[request.id], request))
        return Defer(
            worker="",
            until_s=decision.at_s,
            deadline_s=decision.at_s,
            predicted_ttft_s=0.0,
            predicted_tpot_s=0.0,
            reason=Reason.overloaded,
            tier=request.tier,
        )

    def due(self, now: float) -> list[Decided]:
        """See `AnyDoor`."""
        decided = []
        while self._pending and self._pending[0][0] <= now:
            request = heappop(self._pending)[2]
            decided.append(Decided(request, candidate_of(request, now), self._decisions[request.id].verdict))
        return decided

    def changed(self, number: int, now: float) -> None:
        """Of no use here."""

    def level_at(self, now: float) -> Level:
        """See `AnyDoor`."""
        while self._climbed < len(self._levels) and self._levels[self._climbed][0] <= now:
            self._climbed += 1
        return self._levels[self._climbed - 1][1] if self._climbed else Level.calm

    def settled(self, outcome: Outcome, now: float) -> None:
        """Of no use here."""

    def _other(self, request: Request, decision: Decision) -> Admit | Refuse:
        if isinstance(decision.verdict, Admit):
            return Refuse(reason=Reason.overloaded, measured=0.0, threshold=0.0, retry_after_s=None)
        return Admit(
            worker="",  # the one that placement finds best
            tier=request.tier,
            ttft_s=request.ttft_s,
            tpot_s=request.tpot_s,
            predicted_ttft_s=0.0,
            predicted_tpot_s=0.0,
            headroom_s=inf,
            outputs=decision.outputs,
        )
