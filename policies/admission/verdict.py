"""The question that admission is asked, and its three answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from policies.admission.reasons import Reason
from policies.overload import Rungs
from policies.vocabulary import Request, Tier

__all__ = ["AdmissionKind", "Admit", "Candidate", "Decided", "Defer", "Policy", "Refuse", "Verdict", "candidate_of"]

AdmissionKind = Literal["none", "no-evict", "token-budget", "mooncake-naive", "mooncake", "contract"]


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A request at the door. Contract figures are the request's own, no tighter than the tenant's."""

    id: str
    tenant: str
    model: str
    tier: int
    prompt_tokens: int
    max_tokens: int
    arrived_s: float  # instant on the caller's clock
    ttft_s: float | None = None
    tpot_s: float | None = None
    max_wait_s: float = 30.0  # how long one without a TTFT contract may wait for its start
    committed: bool = True  # within the tenant's rate: else best effort, whatever its tier
    cached: Mapping[str, int] = {}  # prompt tokens in the prefix cache, by worker

    @property
    def binds(self) -> bool:
        """Whether it has a contract that counts: not in the flex tier, not above its tenant's rate."""
        return self.committed and self.tier < Tier.flex


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How admission decides: the kind, and the few figures of a decision."""

    kind: AdmissionKind = "contract"

    lookahead_s: float = 0.2  # a start within so long is now: the scheduler's own queue bridges it
    kv_reserve: float = 0.05  # share of the blocks that admission leaves alone
    outputs_quantile: float = 0.85  # of the lengths known, for what is still to come
    ttft_reserve: float = 0.03  # of the promised time to the first token, where it must wait for others to end: when
    # they do is the least certain of all that is foreseen
    spare: float = 0.1  # share of its time to the first token that an admitted prompt keeps when another goes before it
    lower_pace: float = 1.0  # steps that a lower class may cause, as a share of the tightest pace promised above it
    flex_yields: bool = False  # the scheduler lets rows without a contract sit out steps that a contract needs

    relegate: bool = False  # what would be refused for want of room under its contract goes in as best effort
    above_rate: bool = False  # a tenant above its committed rate goes in as best effort; else its limits refuse it

    fair_room: float = 0.2  # contract: what a tenant above its fair line leaves to others (see fairness.py); 0: off
    fair_most: float = (
        0.0  # ... and up to so much, of the pace above an empty step too, while those below their line are
    )
    # refused (see fairness.py); not above `fair_room`: it is fixed
    fair_window_s: float = 10.0  # over which shares are compared

    ladder: Rungs | None = Rungs()  # contract: what is given up under overload (policies/overload.py); None: nothing

    retry_floor_s: float = 0.05
    jitter: float = 0.15
    load_time_s: float = 5.0  # until a worker for the model may be there

    queue_size: int = 512  # deferred requests of a model, at most
    queue_share: float = 0.5  # of these, a tenant may hold
    looked_at: int = 64  # deferred requests that a report of load examines again, at most
    shortlist: int = 8  # workers that a decision looks at, at most (see fleet.py)

    queued_tokens: int = 16_384  # token-budget: prompt tokens that wait on a worker; above, nothing comes in
    uniform_outputs: int = 0  # mooncake: every request decodes so many; 0: what is expected of the candidate


class Admit(msgspec.Struct, frozen=True, kw_only=True):
    """Submit it at `tier` with `ttft_s` remaining and `tpot_s`, on `worker`; empty: wherever it is placed.

    `relegated`: it had a contract, and comes in without: flex, nothing promised.
    """

    worker: str
    tier: int
    ttft_s: float | None
    tpot_s: float | None
    predicted_ttft_s: float  # from arrival
    predicted_tpot_s: float
    headroom_s: float  # of the TTFT (or of the wait) that is left; inf: nothing bounds it
    relegated: bool = False
    outputs: int = 0  # expected of it; 0: nothing is known but `max_tokens`


class Defer(msgspec.Struct, frozen=True, kw_only=True):
    """Keep it until `until_s` (an instant), its earliest feasible start, or until a worker's state changes."""

    worker: str
    until_s: float
    deadline_s: float  # the latest start that is still of use
    predicted_ttft_s: float
    predicted_tpot_s: float
    reason: Reason  # what it waits for
    tier: int  # that it would be submitted at


class Refuse(msgspec.Struct, frozen=True, kw_only=True):
    """`retry_after_s` None: coming back cannot help, it is impossible on an idle worker."""

    reason: Reason
    measured: float
    threshold: float
    retry_after_s: float | None
    predicted_ttft_s: float | None = None


Verdict = Admit | Defer | Refuse


class Decided(msgspec.Struct, frozen=True):
    """What became of a request that was deferred."""

    request: Request
    candidate: Candidate
    verdict: Admit | Refuse


def candidate_of(
    request: Request, now: float, *, committed: bool = True, patience_s: float = 30.0, cached: Mapping[str, int] = {}
) -> Candidate:
    """`request` as it stands at the door at `now`."""
    return Candidate(
        id=request.id,
        tenant=request.tenant,
        model=request.model,
        tier=request.tier,
        prompt_tokens=len(request.prompt) // 4,
        max_tokens=request.max_tokens,
        arrived_s=now,
        ttft_s=request.ttft_s,
        tpot_s=request.tpot_s,
        max_wait_s=patience_s,
        committed=committed,
        cached=cached,
    )
