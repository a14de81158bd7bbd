"""What a run was worth: the figures of a `Result`, defined once.

The choices that decide what a number means:

- A request **keeps its contract** if it finished in full with its first token and its mean pace in time. Late, cut off,
  refused, shed and never finished are all misses.
- **In contract** is what has a promise and a class above flex, and did not exceed its tenant's own rate. All else has
  no contract: finishing is enough, and it is counted apart.
- **Attainment** is given of the admitted and of the offered: refusing everybody makes the first one perfect.
- Nothing is cut off: the first requests count, and at the end the queue is drained.
- **Goodput** is over the span of the arrivals, so that two policies on one workload are divided by the same.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median, quantiles

import msgspec

from policies.vocabulary import Tenant, Tier
from simulator.fairness import jain_index, largest_service_gap
from simulator.judgement import Counterfactuals, Share
from simulator.quantiles import quantile
from simulator.records import Outcome, Result

__all__ = ["Group", "Metrics", "flat", "in_contract", "measure"]

#: Reasons that are the tenant's own doing (429), not ours. They are part of the API, and never change.
_OWN_LIMIT = frozenset(("requests_per_minute", "tokens_per_minute", "concurrency", "daily_budget"))


#: Of `Counterfactuals`.
_SHARES = (
    "false_refusals",
    "false_admissions",
    "missed",
    "harmful",
    "impossible",
    "retries_admitted",
    "retries_met",
)


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Some of the requests of a run. Shares are None where there is nothing to divide by."""

    name: str
    offered: int
    admitted: int  # under their contract
    relegated: int  # admitted without it
    refused: int
    shed: int  # dropped by a scheduler after they were admitted
    finished: int
    met: int
    attainment_admitted: float | None
    attainment_offered: float | None
    met_outputs: int  # tokens that those who were met were given
    ttft_p50_s: float | None  # of all that had a first token
    ttft_p90_s: float | None
    ttft_p99_s: float | None
    tpot_p50_s: float | None
    tpot_p90_s: float | None
    tpot_p99_s: float | None


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """All figures of a run."""

    workload: str
    policy: str
    device: str
    workers: int
    load: float
    seed: int
    span_s: float  # of the arrivals
    ended_s: float  # when everything was over
    wall_s: float
    steps: int

    contract: Group
    free: Group  # those without a contract
    tiers: list[Group]
    tenants: list[Group]  # in order of what they asked for, the most first
    deciles: list[Group]  # of the in-contract, by prompt length

    goodput_rps: float  # in-contract requests that were met, a second
    goodput_tokens_per_s: float  # their outputs
    free_rps: float  # requests without a contract that finished, a second

    refusal_p99_s: float | None  # from arrival to the refusal (or to being shed)
    refusals: dict[str, int]  # and sheds, by reason
    retry_after_p50_s: float | None
    retry_after_p90_s: float | None

    preemptions_per_request: float  # of those that were served
    longest_gap_p99_s: float | None  # of those that were preempted
    lost_tokens: int
    lost_share: float  # of the computed tokens
    swapped_gb: float
    transferred_gb: float
    busy_share: float

    jain_index: float | None
    service_gap: float | None  # see simulator.fairness

    step_coverage: float | None  # share of steps within their predicted P90
    step_error: float | None
    ttft_coverage: float | None  # share of first tokens within what admission predicted
    ttft_error: float | None  # median of |actual / predicted - 1|

    most_met: int | None = None  # in contract, by anybody: see simulator.fluid_bound
    counterfactual: Counterfactuals | None = None  # where it was asked for

    @property
    def attainment_bound(self) -> float | None:
        """No attainment of the offered is above."""
        return None if self.most_met is None or not self.contract.offered else self.most_met / self.contract.offered


def in_contract(outcome: Outcome) -> bool:
    """Whether a promise binds us to this request."""
    return (
        outcome.tier < Tier.flex
        and (outcome.ttft_s is not None or outcome.tpot_s is not None)
        and outcome.reason not in _OWN_LIMIT
    )


def measure(result: Result, tenants: Mapping[str, Tenant] | None = None) -> Metrics:
    """The figures of a run. `tenants` gives the weights of fair shares: 1 without it."""
    outcomes = result.outcomes
    contract = [outcome for outcome in outcomes if in_contract(outcome)]
    free = [outcome for outcome in outcomes if not in_contract(outcome)]
    weights = {name: tenant.contract.weight for name, tenant in (tenants or {}).items()}
    span_s = (outcomes[-1].arrived_s if outcomes else 0.0) or result.ended_s or 1.0
    whole, rest = _group("in contract", contract), _group("no contract", free)
    turned_away = [o for o in outcomes if o.decision in ("refused", "shed")]
    waits = sorted(o.decided_s - o.arrived_s for o in turned_away if o.decided_s is not None)
    retries = sorted(o.retry_after_s for o in turned_away if o.retry_after_s is not None)
    served = [o for o in outcomes if o.scheduled_s is not None]
    gaps = sorted(o.longest_gap_s for o in served if o.preemptions)
    coverage, error = _first_token_calibration(served)
    return Metrics(
        workload=result.workload,
        policy=result.policy,
        device=result.device,
        workers=result.workers,
        load=result.load,
        seed=result.seed,
        span_s=span_s,
        ended_s=result.ended_s,
        wall_s=result.wall_s,
        steps=result.steps,
        contract=whole,
        free=rest,
        tiers=[_group(_tier_name(tier), members) for tier, members in sorted(_by_tier(outcomes).items())],
        tenants=_tenant_groups(outcomes),
        deciles=_deciles(contract),
        goodput_rps=whole.met / span_s,
        goodput_tokens_per_s=whole.met_outputs / span_s,
        free_rps=rest.finished / span_s,
        refusal_p99_s=quantile(waits, 0.99),
        refusals=dict(Counter(o.reason or "unknown" for o in turned_away).most_common()),
        retry_after_p50_s=quantile(retries, 0.5),
        retry_after_p90_s=quantile(retries, 0.9),
        preemptions_per_request=sum(o.preemptions for o in served) / len(served) if served else 0.0,
        longest_gap_p99_s=quantile(gaps, 0.99),
        lost_tokens=result.lost_tokens,
        lost_share=result.lost_tokens / result.computed_tokens if result.computed_tokens else 0.0,
        swapped_gb=result.swapped_bytes / 1e9,
        transferred_gb=result.transferred_bytes / 1e9,
        busy_share=result.busy_s / (result.workers * result.ended_s) if result.ended_s else 0.0,
        jain_index=jain_index(outcomes, weights),
        service_gap=largest_service_gap(outcomes, weights, ended_s=result.ended_s),
        step_coverage=result.step_coverage,
        step_error=result.step_error,
        ttft_coverage=coverage,
        ttft_error=error,
    )


def flat(metrics: Metrics) -> dict[str, str | int | float | None]:
    """One level, for a row of a table: groups give `contract_*`, `free_*` and attainments by tier; lists are left out.

    `worst_decile` is the lowest attainment of the offered among the deciles by prompt length, `worst_tenant` that among
    the tenants with a contract.
    """
    row: dict[str, str | int | float | None] = {}
    for field, value in msgspec.structs.asdict(metrics).items():
        if isinstance(value, Group):
            prefix = field
            row |= {f"{prefix}_{k}": v for k, v in msgspec.structs.asdict(value).items() if k != "name"}
        elif not isinstance(value, list | dict | Counterfactuals):
            row[field] = value
    for tier in Tier:
        group = next((group for group in metrics.tiers if group.name == tier.name), None)
        row[f"{tier.name}_attainment_admitted"] = group.attainment_admitted if group else None
        row[f"{tier.name}_attainment_offered"] = group.attainment_offered if group else None
    row["attainment_bound"] = metrics.attainment_bound
    row.pop("counterfactual", None)
    row |= _judged(metrics.counterfactual)
    row["worst_decile"] = _worst(metrics.deciles)
    row["worst_tenant"] = _worst(metrics.tenants)
    return row


def _judged(found: Counterfactuals | None) -> dict[str, float | None]:
    """The shares, and the intervals of the two that count."""
    row: dict[str, float | None] = {}
    for name in _SHARES:
        judged: Share | None = None if found is None else getattr(found, name)
        row[name] = judged.share if judged else None
        if name in ("false_refusals", "false_admissions"):
            row[f"{name}_low"] = judged.low if judged else None
            row[f"{name}_high"] = judged.high if judged else None
    return row


def _worst(groups: Iterable[Group]) -> float | None:
    return min((g.attainment_offered for g in groups if g.attainment_offered is not None), default=None)


def _group(name: str, outcomes: Sequence[Outcome]) -> Group:
    decisions = Counter(outcome.decision for outcome in outcomes)
    met = [outcome for outcome in outcomes if outcome.met]
    met_admitted = sum(outcome.admitted for outcome in met)
    # A shed request was admitted first: that is a broken promise, not a refusal.
    admitted = decisions["admitted"] + decisions["shed"]
    ttfts = sorted(ttft for o in outcomes if (ttft := o.measured_ttft_s) is not None)
    tpots = sorted(tpot for o in outcomes if (tpot := o.measured_tpot_s) is not None)
    return Group(
        name=name,
        offered=len(outcomes),
        admitted=admitted,
        relegated=decisions["relegated"],
        refused=decisions["refused"],
        shed=decisions["shed"],
        finished=sum(outcome.finished_s is not None for outcome in outcomes),
        met=len(met),
        attainment_admitted=met_admitted / admitted if admitted else None,
        attainment_offered=len(met) / len(outcomes) if outcomes else None,
        met_outputs=sum(outcome.generated for outcome in met),
        ttft_p50_s=quantile(ttfts, 0.5),
        ttft_p90_s=quantile(ttfts, 0.9),
        ttft_p99_s=quantile(ttfts, 0.99),
        tpot_p50_s=quantile(tpots, 0.5),
        tpot_p90_s=quantile(tpots, 0.9),
        tpot_p99_s=quantile(tpots, 0.99),
    )


def _tier_name(tier: int) -> str:
    return Tier(tier).name if tier in Tier.__members__.values() else f"tier {tier}"


def _by_tier(outcomes: Iterable[Outcome]) -> dict[int, list[Outcome]]:
    tiers: dict[int, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        tiers[outcome.tier].append(outcome)
    return tiers


def _tenant_groups(outcomes: Iterable[Outcome]) -> list[Group]:
    tenants: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        tenants[outcome.tenant].append(outcome)
    ordered = sorted(tenants.items(), key=lambda item: (-len(item[1]), item[0]))
    return [_group(name, members) for name, members in ordered]


def _deciles(outcomes: Sequence[Outcome]) -> list[Group]:
    """By prompt length; equal lengths stay together, so that few different ones make fewer groups."""
    if len(outcomes) < 10:
        return []
    cuts = quantiles((outcome.prompt_tokens for outcome in outcomes), n=10, method="inclusive")
    members: dict[int, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        members[bisect_left(cuts, outcome.prompt_tokens)].append(outcome)
    return [
        _group(f"{min(o.prompt_tokens for o in group)}-{max(o.prompt_tokens for o in group)}", group)
        for _, group in sorted(members.items())
    ]


def _first_token_calibration(served: Iterable[Outcome]) -> tuple[float | None, float | None]:
    pairs = [
        (ttft, outcome.predicted_ttft_s)
        for outcome in served
        if outcome.predicted_ttft_s is not None and (ttft := outcome.measured_ttft_s) is not None
    ]
    if not pairs:
        return None, None
    covered = sum(ttft <= predicted for ttft, predicted in pairs) / len(pairs)
    errors = [abs(ttft / predicted - 1) for ttft, predicted in pairs if predicted > 0]
    return covered, median(errors) if errors else None
