"""What a decision is made on: the few workers that it looks at, and what is known beside their reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from policies.admission.lengths import HistoryLengths, MaxTokens, OutputLengths
from policies.admission.reasons import Reason
from policies.admission.verdict import Candidate, Policy, Refuse, Verdict
from policies.admission.worker_state import Reservation
from policies.vocabulary import RequestLoad, WorkerLoad

__all__ = ["Gate", "Situation", "nobody"]

_DEFAULTS = Policy()


@dataclass(slots=True, kw_only=True)
class Situation:
    """`loads`: the shortlist, the emptiest first, at least one. `reserved`: what was admitted on them since their
    reports, and what is deferred ahead of the candidate (on the worker of its verdict)."""

    now: float
    loads: Sequence[WorkerLoad]
    reserved: Sequence[Reservation] = ()
    policy: Policy = _DEFAULTS
    lengths: OutputLengths = field(default_factory=MaxTokens)
    margin: float = 0.0  # share of the promised time to the first token to hold back ...
    pace_margin: float = 0.0  # ... and of the promised pace
    room: float = 0.0  # share of the capacity to leave to others
    jitter: float = 0.5  # in [0, 1): spreads the times to come back
    keep_tpot_s: float | None = None  # the tightest pace that any tenant was promised
    wait_s: float = 0.0  # estimate of a newcomer's wait on the first of `loads` ...
    step_s: float = 0.0  # ... and of its steps without prompts

    def reserved_on(self, worker: str) -> list[Reservation]:
        """Those of `reserved` that are on that worker."""
        return [reservation for reservation in self.reserved if reservation.worker == worker]

    def outputs(self, candidate: Candidate, quantile: float | None = None) -> int:
        """Expected of it."""
        return self.lengths.expected(candidate, self.policy.outputs_quantile if quantile is None else quantile)

    def remaining(self) -> Callable[[RequestLoad], int] | None:
        """The outputs expected of live requests; None: all that they may produce."""
        lengths, quantile = self.lengths, self.policy.outputs_quantile
        if isinstance(lengths, MaxTokens):
            return None
        if isinstance(lengths, HistoryLengths):
            return lengths.of_live(quantile)
        return partial(lengths.remaining, quantile=quantile)

    def retry_s(self, wait_s: float) -> float:
        """When to come back, if it would fit in `wait_s`: jittered, so that those refused together do not return so."""
        spread = 1 + self.policy.jitter * (2 * self.jitter - 1)
        return max(self.policy.retry_floor_s, wait_s * spread)


#: One kind of admission: decides on a candidate. Pure: the caller reserves.
Gate = Callable[[Candidate, Situation], Verdict]


def nobody(policy: Policy) -> Refuse:
    """The refusal of a model that no worker serves."""
    return Refuse(reason=Reason.no_worker, measured=0, threshold=1, retry_after_s=policy.load_time_s)
