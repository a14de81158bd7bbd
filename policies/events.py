"""What a scheduler reports: facts for the ledger, metrics and traces, in the order in which they came to be.

Times are seconds on the caller's clock, as given to the scheduler.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from policies.vocabulary import Finish

__all__ = ["Event", "Finished", "FirstToken", "Preempted", "Reclaimed", "Scheduled"]


class Scheduled(msgspec.Struct, frozen=True):
    """A request got a slot for the first time."""

    request: str
    attempt: int
    tenant: str
    gateway: str
    queued_at: float
    at: float
    cached_tokens: int  # of the prompt, already resident
    step: int


class FirstToken(msgspec.Struct, frozen=True):
    """The first output of this attempt is sampled (and on its way to the gateway)."""

    request: str
    attempt: int
    tenant: str
    gateway: str
    queued_at: float
    first_scheduled_at: float
    at: float
    late_s: float | None  # past its deadline; negative: early; None: no contract


class Preempted(msgspec.Struct, frozen=True):
    """A running request lost its slot; it waits again."""

    request: str
    attempt: int
    tenant: str
    kind: str  # swap: its KV, or the tail of it, is on the host; tail: it keeps the head; recompute: it keeps nothing
    lost_tokens: int  # KV that is to be computed again, unless the prefix cache still has it
    blocks: int  # that it gave up
    at: float
    swapped_blocks: int = 0  # that are copied to the host for it; what was copied ahead is not among them
    kept_blocks: int = 0  # on the device, while it waits


class Reclaimed(msgspec.Struct, frozen=True):
    """A waiting request lost more of the blocks that it had kept."""

    request: str
    attempt: int
    tenant: str
    lost_tokens: int  # KV that is to be computed again, beyond what was lost before
    blocks: int  # that it gave up
    swapped_blocks: int
    at: float


class Finished(msgspec.Struct, frozen=True):
    """A request is over: no step touches it any more, `generated` is exact and is what its gateway was sent."""

    request: str
    attempt: int
    tenant: str
    gateway: str
    finish: Finish
    prompt_tokens: int
    generated: int  # outputs in all, those of earlier attempts included
    cached_tokens: int
    preemptions: int
    queued_at: float
    first_scheduled_at: float | None
    first_token_at: float | None
    at: float


Event: TypeAlias = Scheduled | FirstToken | Preempted | Reclaimed | Finished
