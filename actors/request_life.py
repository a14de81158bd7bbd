"""What a scheduler remembers of one attempt of a request while it is here, for its spans: instants, and what happened.

Plain facts, kept for every request whether it is sampled or not: a few hundred bytes, a few microseconds over its whole
life, and nothing per token.
"""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry.util.types import AttributeValue

from policies.vocabulary import Request

__all__ = ["MOST_CHUNKS", "MOST_INCIDENTS", "MOST_STEPS", "Life"]

#: Chunks of a prompt that are told one by one; the rest is only counted.
MOST_CHUNKS = 32
#: Preemptions and the like, and sampled steps.
MOST_INCIDENTS = 24
MOST_STEPS = 16


class Life:
    """Instants are seconds of the scheduler's monotonic clock."""

    __slots__ = (
        "attempt",
        "cached_tokens",
        "chunks",
        "first_token_at",
        "gateway",
        "id",
        "incidents",
        "is_kept",
        "is_out",
        "preemptions",
        "prompt_tokens",
        "scheduled_at",
        "steps",
        "taken_at",
        "tenant",
        "tier",
        "told_chunks",
        "traceparent",
        "worker",
    )

    def __init__(self, request: Request, now: float) -> None:
        self.id = request.id
        self.attempt = request.attempt
        self.gateway = request.gateway
        self.tenant = request.tenant
        self.tier = request.tier
        self.traceparent = request.traceparent
        self.prompt_tokens = len(request.prompt) // 4
        self.taken_at = now
        self.worker = ""
        self.scheduled_at: float | None = None
        self.first_token_at: float | None = None
        self.cached_tokens = 0
        self.chunks = 0  # before the first token
        self.told_chunks: list[tuple[float, int, int, float]] = []  # (at, step, tokens, seconds of the step)
        self.incidents: list[tuple[float, str, Mapping[str, AttributeValue]]] = []
        self.steps: list[tuple[float, str]] = []  # (at, traceparent) of sampled steps that it ran in
        self.preemptions = 0
        self.is_out = False  # preempted, and not back yet
        self.is_kept = False  # it matters, sampled or not

    def chunk(self, at: float, step: int, tokens: int, step_s: float) -> None:
        """A step computed so many tokens of its prompt, or computed them again."""
        self.chunks += self.first_token_at is None
        if len(self.told_chunks) < MOST_CHUNKS:
            self.told_chunks.append((at, step, tokens, step_s))

    def incident(self, at: float, name: str, attributes: Mapping[str, AttributeValue]) -> None:
        """An event of its spans."""
        if len(self.incidents) < MOST_INCIDENTS:
            self.incidents.append((at, name, attributes))
