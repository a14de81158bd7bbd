"""What counterfactual runs say of an admission: how many of its refusals and admissions were false."""

from __future__ import annotations

from math import sqrt

import msgspec

__all__ = ["Case", "Counterfactuals", "Judged", "Share", "share"]

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
