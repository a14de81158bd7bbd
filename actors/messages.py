"""The whole protocol between the actors, in the order in which a request meets it.

Subjects are `hg.v1.<role>.<instance>`; the verb is the message's tag. v1 is the wire version: fields are only appended,
with defaults. Remaining time, trace context, epoch, sender and sequence ride in the envelope
(actors/runtime/message.py).

    gateway ──Admit──▶ admission ──Submit──▶ scheduler ──RunStep──▶ worker
       ▲ ◀──Decision──────┘                  ▲      └──HandBack──▶ gateway     │
       └────────────Tokens────────────────── │ ◀─────────Stepped──────────────┤
       └───────────────────────────────────────────────────Tokens◀────────────┘

Core NATS may lose a message. What is lost is repaired by these rules, and by no others:
- `RunStep` and `Stepped` carry step numbers; the scheduler sends again what is not acknowledged, the worker answers
  a step that it has done with the same `Stepped` again and runs nothing twice.
- `Tokens` carry (request, attempt, index). A gateway that sees a gap, a hand-back, a new scheduler or a silence
  submits the request again as attempt + 1 with the tokens its client has. Tokens of an older attempt are ignored, an
  older submit too.
- `Settle` may be lost: admission compares its reservations with what the gateways report every second (`Live`).
"""

from __future__ import annotations

import msgspec

from actors.runtime import Message
from policies.views import CoreView
from policies.vocabulary import Request, Step, StepDone, WorkerLoad, WorkerSpec

__all__ = [
    "Accepted",
    "AdmissionFacts",
    "Admit",
    "Attach",
    "Attached",
    "AuditQuery",
    "AuditRows",
    "Cancel",
    "Cancelled",
    "Decision",
    "DecisionFact",
    "Explain",
    "Exposition",
    "HandBack",
    "Keep",
    "Live",
    "Load",
    "Pressed",
    "Quota",
    "QuotaQuery",
    "ReportLive",
    "RunStep",
    "SchedulerFacts",
    "Settle",
    "StepFact",
    "StepRefused",
    "Stepped",
    "Submit",
    "TenantFacts",
    "Tokens",
    "UsageOpened",
    "UsageQuery",
    "UsageRow",
    "UsageRows",
    "UsageSettled",
    "WaitingFacts",
    "Watching",
    "Where",
    "Whereabouts",
    "WorkerFacts",
]

# --- gateway → admission ----------------------------------------------------------------------------------------------


class Admit(Message, frozen=True, tag="admit"):
    """May this request be served within its contract? Ask; the answer, `Decision`, comes when it is final.

    A deferred request is answered when it is admitted or its time is over. Leaving (a client that goes) is told by
    `Cancel`. `patience_s` bounds the wait of a request without a deadline.
    """

    request: Request
    patience_s: float
    retries: int = 0  # of the client's SDK: an aged retry


class Decision(Message, frozen=True, tag="decision"):
    """admitted: the request is with the scheduler. refused: `reason` says why, and `retry_after_s` when to come
    back."""

    outcome: str  # admitted | refused
    reason: str = ""  # of policies.admission.Reason
    message: str = ""  # for the client: the measured value and the threshold in words
    measured: float = 0.0
    threshold: float = 0.0
    retry_after_s: float | None = None  # None: coming back does not help
    predicted_ttft_s: float | None = None
    predicted_tpot_s: float | None = None
    deferred_s: float = 0.0  # how long it waited for admission; 0 when admitted at once
    quota: Quota | None = None


class Quota(Message, frozen=True, tag="quota"):
    """A tenant's limits now, for the x-ratelimit headers. None: unlimited."""

    requests_limit: int | None = None
    requests_left: int | None = None
    requests_reset_s: float = 0.0
    tokens_limit: int | None = None
    tokens_left: int | None = None
    tokens_reset_s: float = 0.0


class QuotaQuery(Message, frozen=True, tag="quota-query"):
    """Ask for a tenant's `Quota`."""

    tenant: str


class Explain(Message, frozen=True, tag="explain"):
    """Dry run of `Admit`: the `Decision` that it would get now. Reserves nothing."""

    request: Request


class Settle(Message, frozen=True, tag="settle"):
    """The request is over: give back what it reserved and did not use. Tell."""

    request: str
    tenant: str
    prompt_tokens: int
    output_tokens: int
    ttft_s: float | None = None  # measured at the gateway, for the margin of admission
    tpot_s: float | None = None
    ttft_kept: bool | None = None  # None: not promised, or cut short
    tpot_kept: bool | None = None
    is_whole: bool = True  # it ended by itself, so that its length says something about the next


class ReportLive(Message, frozen=True, tag="report-live"):
    """A new admission actor asks every gateway for its `Live` at once. On its bus topic."""


class Live(Message, frozen=True, tag="live"):
    """What a gateway has under way: on its bus topic, every second and when asked. Struct of arrays."""

    gateway: str
    requests: list[str]
    tenants: list[str]
    tokens: list[int]  # reserved: prompt + max_tokens


# --- gateway, admission → scheduler -----------------------------------------------------------------------------------


class Submit(Message, frozen=True, tag="submit"):
    """Serve this request. From admission: a tell. From a gateway that resumes: an ask, answered `Accepted`."""

    request: Request


class Accepted(Message, frozen=True, tag="accepted"):
    """The scheduler has it."""


class Cancel(Message, frozen=True, tag="cancel"):
    """The request is of no more use. Asked of the scheduler, answered `Cancelled` when no step touches it any more.

    Told to admission while the decision is open.
    """

    request: str


class Cancelled(Message, frozen=True, tag="cancelled"):
    """Its blocks are free. `generated` counts the outputs that workers produced for it, over all attempts."""

    request: str
    generated: int


class Where(Message, frozen=True, tag="where"):
    """A gateway asks about streams that have been silent for a while."""

    requests: list[str]


class Whereabouts(Message, frozen=True, tag="whereabouts"):
    """For each request asked about: its attempt (0: unknown here) and how many outputs are known to be produced."""

    attempts: list[int]
    generated: list[int]


class HandBack(Message, frozen=True, tag="hand-back"):
    """The worker of these requests died: submit each again as attempt + 1. To their gateway.

    `errors[i]`: not empty where the request cannot be served at all (then it is not to be submitted again).
    """

    requests: list[str]
    attempts: list[int]
    errors: list[str]


# --- scheduler ↔ worker -----------------------------------------------------------------------------------------------


class Attach(Message, frozen=True, tag="attach"):
    """A scheduler (its lease epoch is in the envelope) takes the worker over. The worker forgets all rows; steps
    begin at 1."""


class Attached(Message, frozen=True, tag="attached"):
    """The answer. `session` is in every `Stepped` after it, so that results of an earlier attach are told apart."""

    spec: WorkerSpec
    session: int


class RunStep(Message, frozen=True, tag="step"):
    """Run one forward pass. Sampled tokens stay on the device, so step n+1 may arrive before n is done."""

    session: int
    step: Step


class Stepped(Message, frozen=True, tag="stepped"):
    """A step is done. Sent beside the `Tokens` of the same step."""

    session: int
    done: StepDone


class StepRefused(Message, frozen=True, tag="step-refused"):
    """The worker wants step `wanted` of `session`: an earlier one was lost."""

    session: int
    wanted: int


# --- worker → gateway -------------------------------------------------------------------------------------------------


class Tokens(Message, frozen=True, tag="tokens"):
    """All tokens of one step for one gateway. Entry i: `requests[i]` in its `attempts[i]` got output `indices[i]`.

    `finished[i]` is a `policies.vocabulary.Finish`. `cached` maps i, at the first output of an attempt, to the prompt
    tokens that were found in the cache. `logprobs` maps i to [(token id, logprob), …]: the chosen one first, then the
    most likely, only for requests that asked.
    """

    step: int
    requests: list[str]
    attempts: list[int]
    indices: list[int]
    tokens: list[int]
    finished: list[int]
    logprobs: dict[int, list[tuple[int, float]]]
    cached: dict[int, int]


# --- bus (heartbeats are the runtime's own: actors/runtime/heartbeat.py) ----------------------------------------------


class Load(Message, frozen=True, tag="load"):
    """The scheduler's state, on its bus topic: every 100 ms, and soon after a request entered or ended."""

    model: str
    workers: list[WorkerLoad]
    unplaced: int = 0  # requests that wait for any worker


# --- gateway, scheduler → ledger: JetStream, stream `usage`, never lost -----------------------------------------------


class UsageOpened(Message, frozen=True, tag="usage-opened"):
    """Written ahead by the gateway before a request is answered. `Nats-Msg-Id`: `<request>:opened`."""

    request: str
    tenant: str
    key: str
    model: str
    gateway: str
    prompt_tokens: int
    max_tokens: int
    opened_unix_s: float


class UsageSettled(Message, frozen=True, tag="usage-settled"):
    """The end of a request. By its gateway (`Nats-Msg-Id`: `<request>:settled`), or by the scheduler if that died
    (`<request>:orphan`). The one with the most outputs counts: a gateway may be taken for dead too early."""

    request: str
    prompt_tokens: int
    output_tokens: int  # those that workers produced, once each however often a replay computed them
    cached_tokens: int
    finish: str  # stop | length | cancelled | error | refused
    attempts: int
    settled_unix_s: float


class Pressed(Message, frozen=True, tag="pressed"):
    """How far up the overload ladder admission sees a model: on its bus topic, at every change, and every second above
    calm. A scheduler that hears nothing more for three seconds is calm again."""

    model: str
    level: int  # of policies.overload.Level


class Exposition(Message, frozen=True, tag="exposition"):
    """The metrics of a process in Prometheus text form, on the bus topic of its role, every two seconds."""

    instance: str
    text: bytes


# --- bus, while somebody looks: what the live page and `headgate top` show --------------------------------------------


class Watching(Message, frozen=True, tag="watching"):
    """A gateway has viewers: on its bus topic, every second. Without one for 3 s nobody tells facts.

    `whole`: it lacks some of what was told, or all: tell everything that is kept.
    """

    whole: bool = False


class StepFact(msgspec.Struct, frozen=True, array_like=True):
    """A step that came back."""

    worker: str
    number: int
    at_unix_s: float
    prefill_tokens: int
    decode_tokens: int
    rows: int
    predicted_s: float
    actual_s: float


class WorkerFacts(msgspec.Struct, frozen=True, array_like=True):
    """An attached worker. `blocks`: by state (used, free, cached, host)."""

    worker: str
    device: str
    epoch: int
    slots: int
    free_slots: int
    steps_per_s: float  # over the last seconds
    blocks: dict[str, int]
    view: CoreView


class SchedulerFacts(Message, frozen=True, tag="scheduler-facts"):
    """On the scheduler's bus topic, at most four times a second. The steps are those since the last time, or `whole`:
    all that are kept. `first` numbers the first of them, in this run of the scheduler, consecutive from 1."""

    model: str
    first: int
    steps: list[StepFact]
    workers: list[WorkerFacts]
    served_tokens: dict[str, int]  # computed in the last minute, by tenant
    unplaced: list[tuple[str, int]]  # (tenant, tier) of requests that wait for any worker
    whole: bool = False


class DecisionFact(msgspec.Struct, frozen=True, array_like=True):
    """What admission said of a request. One that is deferred has a second one later."""

    at_unix_s: float
    request: str
    tenant: str
    tier: int
    model: str
    outcome: str  # admitted | deferred | refused
    reason: str
    message: str
    measured: float | None  # against `threshold`: what the reason is about
    threshold: float | None
    predicted_ttft_s: float | None
    predicted_tpot_s: float | None
    deadline_s: float | None  # to the first token, when it came
    retry_after_s: float | None
    deferred_s: float | None
    prompt_tokens: int
    max_tokens: int


class TenantFacts(msgspec.Struct, frozen=True, array_like=True):
    """A tenant's last five minutes. `ttft` and `tpot`: (judged, kept, median, 95th percentile in seconds).

    `history`: share of the judged that was kept, the worse of both promises, in 60 periods of 5 s, oldest first.
    """

    tenant: str
    admitted: int
    deferred: int
    refused: dict[str, int]  # by reason
    ttft: tuple[int, int, float | None, float | None]
    tpot: tuple[int, int, float | None, float | None]
    history: list[float | None]


class WaitingFacts(msgspec.Struct, frozen=True, array_like=True):
    """Requests that admission keeps waiting, of one tenant, model and tier. `slacks_s`: as of a TierView."""

    tenant: str
    model: str
    tier: int
    count: int
    promised: int = 0
    slacks_s: list[float] = []


class AdmissionFacts(Message, frozen=True, tag="admission-facts"):
    """On the bus topic of admission, at most four times a second; `first`, `decisions`, `whole` as for the steps of a
    scheduler. Tenants of whom nothing was heard in five minutes are absent."""

    first: int
    decisions: list[DecisionFact]
    tenants: list[TenantFacts]
    waiting: list[WaitingFacts]
    whole: bool = False


# --- gateway → ledger -------------------------------------------------------------------------------------------------


class UsageQuery(Message, frozen=True, tag="usage-query"):
    """Settled usage by tenant, of UTC days [since, until] (ISO dates, empty: open). The answer: `UsageRows`."""

    tenant: str = ""
    since: str = ""
    until: str = ""
    by: str = "tenant"  # tenant | day | key | request
    limit: int = 1000


class UsageRow(Message, frozen=True, tag="usage-row"):
    """Sums over `requests` settled requests of one tenant (and day, key or request, as asked)."""

    tenant: str
    day: str
    key: str
    request: str
    requests: int
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    unsettled: int = 0  # written ahead and not settled yet


class UsageRows(Message, frozen=True, tag="usage-rows"):
    """In the order of tenant, day, key, request."""

    rows: list[UsageRow]


class AuditQuery(Message, frozen=True, tag="audit-query"):
    """The latest changes of tenants and keys."""

    limit: int = 100


class AuditRows(Message, frozen=True, tag="audit-rows"):
    """Newest first: each a JSON object with time, actor, action, target, details."""

    rows: list[str]


# --- scheduler → gateway, gateway → bus: traces -----------------------------------------------------------------------


class Keep(Message, frozen=True, tag="keep"):
    """Record what you know of these requests, although they were not sampled: they turned out to matter.

    A scheduler tells the gateway of one that it preempted; gateways tell everybody, on their bus topic, when a request
    ended late, failed or was preempted. Lost, it costs spans and nothing else.
    """

    requests: list[str]
