"""What became of every request of a simulation, as the events tell it."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import NamedTuple

from policies.events import Event, Finished, FirstToken, Preempted, Scheduled
from policies.vocabulary import Finish, Request
from simulator.records import Arrival, Outcome

__all__ = ["End", "Ledger"]


class End(NamedTuple):
    """A request is over in a scheduler."""

    request: str
    outcome: Outcome


class Ledger:
    """Outcomes in order of arrival. Those that are over are shared by forks, the others are their own."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.live: dict[str, int] = {}  # request → its place in `outcomes`
        self.lost_tokens = 0
        self.generated = 0  # outputs of the finished

    def __deepcopy__(self, memo: dict[int, object]) -> Ledger:
        """An independent ledger of the same content. O(outcomes), a pointer each."""
        other = memo[id(self)] = Ledger()
        other.outcomes = self.outcomes[:]
        other.live = self.live.copy()
        for place in other.live.values():
            other.outcomes[place] = copy.copy(other.outcomes[place])
        other.lost_tokens, other.generated = self.lost_tokens, self.generated
        return other

    def arrived(self, arrival: Arrival, request: Request, now: float) -> Outcome:
        """A new request."""
        outcome = Outcome(
            id=arrival.id,
            tenant=arrival.tenant,
            tier=request.tier,
            arrived_s=now,
            prompt_tokens=arrival.prompt_tokens,
            output_tokens=min(arrival.output_tokens, arrival.max_tokens),
            ttft_s=request.ttft_s,
            tpot_s=request.tpot_s,
        )
        self.live[arrival.id] = len(self.outcomes)
        self.outcomes.append(outcome)
        return outcome

    def of(self, request: str) -> Outcome:
        """The outcome of a request that is not over."""
        return self.outcomes[self.live[request]]

    def paused(self, request: str, gap_s: float) -> None:
        """So long passed between two outputs of a request, of which a preemption was a part."""
        outcome = self.of(request)
        outcome.longest_gap_s = max(outcome.longest_gap_s, gap_s)

    def over(self, request: str) -> Outcome:
        """Nothing will change any more about this request."""
        return self.outcomes[self.live.pop(request)]

    def take(self, events: Iterable[Event]) -> list[End]:
        """Note what a scheduler tells; returns the ends among it."""
        ends = []
        for event in events:
            if isinstance(event, Finished):
                ends.append(End(event.request, self._finished(event)))
            elif isinstance(event, FirstToken):
                self.of(event.request).first_token_s = event.at
            elif isinstance(event, Scheduled):
                outcome = self.of(event.request)
                outcome.scheduled_s, outcome.cached_tokens = event.at, event.cached_tokens
            elif isinstance(event, Preempted):
                self.of(event.request).preemptions += 1
                self.lost_tokens += event.lost_tokens
            else:
                self.lost_tokens += event.lost_tokens
        return ends

    def _finished(self, event: Finished) -> Outcome:
        outcome = self.over(event.request)
        outcome.generated = event.generated
        self.generated += event.generated
        if event.finish in (Finish.stop, Finish.length):
            outcome.finished_s = event.at
        else:
            outcome.decision, outcome.reason = "shed", event.finish.name
        return outcome
