"""What counterfactual runs say of an admission: how many of its refusals and admissions were false."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from math import sqrt
from statistics import quantiles

import msgspec

from policies.vocabulary import Tier

__all__ = ["Case", "Counterfactuals", "Judged", "Share", "share", "sum_up"]

_Z = 1.959963984540054  # of a standard normal variable: 95 % lie within


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """`count` of `of`, with the 95 % interval of Wilson (1927) for the share that a sample of them stands for. None:
    there was nothing to look at."""

    count: int
    of: int
    share: float | None
    low: float | None
    high: float | None


def share(count: int, of: int) -> Share:
    """`count` of a sample of `of`."""
    if not of:
        return Share(count=count, of=of, share=None, low=None, high=None)
    p, unsure = count / of, _Z * _Z / of
    middle = (p + unsure / 2) / (1 + unsure)
    half = _Z * sqrt(p * (1 - p) / of + unsure / (4 * of)) / (1 + unsure)
    return Share(
        count=count,
        of=of,
        share=p,
        low=0.0 if count == 0 else max(0.0, middle - half),
        high=1.0 if count == of else min(1.0, middle + half),
    )


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One decision, and what the other one would have led to. Times are from its arrival."""

    id: str
    tier: int
    prompt_tokens: int
    decision: str  # refused | admitted
    reason: str  # why refused
    arrived_s: float
    predicted_ttft_s: float | None  # when it was decided on
    promised_ttft_s: float | None
    promised_tpot_s: float | None
    is_false: bool
    met: bool  # of an admitted one: as it was; of a refused one: had it been admitted
    ttft_s: float | None  # likewise
    tpot_s: float | None  # likewise
    lost: int = 0  # others that are met without it, and not with it
    gained: int = 0  # others that are met with it, and not without it
    retry_after_s: float | None = None
    retry: str = ""  # had it come again as it was told: met | missed | refused | relegated


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """Rates of a part of the sample."""

    name: str
    false_refusals: Share  # of the refused
    false_admissions: Share  # of the admitted


class Counterfactuals(msgspec.Struct, frozen=True, kw_only=True):
    """See `simulator.counterfactual`."""

    refused: int  # in contract, of which a sample was judged
    admitted: int
    false_refusals: Share
    false_admissions: Share
    missed: Share  # false admissions: their own contract was broken ...
    harmful: Share  # ... or it was kept, and cost others theirs
    impossible: Share  # refusals that were said to be for ever, and were false: of those that were said to be so
    retries_admitted: Share  # came again when they were told to, and were let in under their contract ...
    retries_met: Share  # ... and had it kept
    tiers: list[Judged]
    deciles: list[Judged]  # by prompt length
    cases: list[Case]  # the sample, in order of arrival


def sum_up(cases: list[Case], *, refused: int, admitted: int, lengths: Sequence[int]) -> Counterfactuals:
    """The rates of a sample out of so many. `lengths`: prompt tokens of all that were offered in contract."""
    whole = _judged("in contract", cases)
    let_in = [case for case in cases if case.decision == "admitted"]
    turned_away = [case for case in cases if case.decision == "refused"]
    for_ever = [case for case in turned_away if case.retry_after_s is None]
    again = [case for case in turned_away if case.retry]
    return Counterfactuals(
        refused=refused,
        admitted=admitted,
        false_refusals=whole.false_refusals,
        false_admissions=whole.false_admissions,
        missed=share(sum(not case.met for case in let_in), len(let_in)),
        harmful=share(sum(case.met and case.is_false for case in let_in), len(let_in)),
        impossible=share(sum(case.is_false for case in for_ever), len(for_ever)),
        retries_admitted=share(sum(case.retry in ("met", "missed") for case in again), len(again)),
        retries_met=share(sum(case.retry == "met" for case in again), len(again)),
        tiers=list(_by_tier(cases)),
        deciles=list(_by_length(lengths, cases)),
        cases=cases,
    )


def _judged(name: str, cases: Sequence[Case]) -> Judged:
    by = {
        decision: [case.is_false for case in cases if case.decision == decision] for decision in ("refused", "admitted")
    }
    return Judged(
        name=name,
        false_refusals=share(sum(by["refused"]), len(by["refused"])),
        false_admissions=share(sum(by["admitted"]), len(by["admitted"])),
    )


def _by_tier(cases: Sequence[Case]) -> Iterator[Judged]:
    for tier in sorted({case.tier for case in cases}):
        name = Tier(tier).name if tier in Tier.__members__.values() else f"tier {tier}"
        yield _judged(name, [case for case in cases if case.tier == tier])


def _by_length(lengths: Sequence[int], cases: Sequence[Case]) -> Iterator[Judged]:
    """In deciles of all that were offered, not of the sample."""
    if len(lengths) < 10:
        return
    cuts = quantiles(lengths, n=10, method="inclusive")
    groups: dict[int, list[Case]] = {}
    for case in cases:
        groups.setdefault(bisect_left(cuts, case.prompt_tokens), []).append(case)
    for _, group in sorted(groups.items()):
        tokens = [case.prompt_tokens for case in group]
        yield _judged(f"{min(tokens)}-{max(tokens)}", group)
