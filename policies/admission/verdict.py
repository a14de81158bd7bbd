"""The question that admission is asked, and its three answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from policies.admission.reasons import Reason

__all__ = ["AdmissionKind", "Admit", "Candidate", "Defer", "Policy", "Refuse", "Verdict"]

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


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How admission decides: the kind, and the few figures of a decision."""

    kind: AdmissionKind = "contract"
    lookahead_s: float = 0.2  # a start within so long is now: the scheduler's own queue bridges it
    kv_reserve: float = 0.05  # share of the blocks that admission leaves alone
    outputs_quantile: float = 0.65  # of a tenant's history, for what is still to come
    retry_floor_s: float = 0.05
    jitter: float = 0.15
    load_time_s: float = 5.0  # until a worker for the model may be there
    flex_yields: bool = False  # the scheduler lets rows without a contract sit out steps that a contract needs


class Admit(msgspec.Struct, frozen=True, kw_only=True):
    """Submit it at `tier` with `ttft_s` remaining and `tpot_s`; best on `worker`."""

    worker: str
    tier: int
    ttft_s: float | None
    tpot_s: float | None
    predicted_ttft_s: float  # from arrival
    predicted_tpot_s: float
    headroom_s: float  # of the TTFT (or of the wait) that is left; inf never


class Defer(msgspec.Struct, frozen=True, kw_only=True):
    """Keep it until `until_s` (an instant), its earliest feasible start, or until a worker's state changes."""

    worker: str
    until_s: float
    deadline_s: float  # the latest start that is still of use
    predicted_ttft_s: float
    predicted_tpot_s: float
    reason: Reason  # what it waits for


class Refuse(msgspec.Struct, frozen=True, kw_only=True):
    """`retry_after_s` None: coming back cannot help, it is impossible on an idle worker."""

    reason: Reason
    measured: float
    threshold: float
    retry_after_s: float | None
    predicted_ttft_s: float | None = None


Verdict = Admit | Defer | Refuse
