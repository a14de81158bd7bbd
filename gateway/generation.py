"""The seam between HTTP and the actors: admit a request, then read its tokens.

`gateway/app.py` sees these types alone; `gateway/streams.py` implements them over NATS.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

from actors.messages import Decision, Quota
from policies.admission.reasons import Reason
from policies.vocabulary import Finish, Request

__all__ = ["Delivery", "Frontend", "Generation", "GenerationFailed", "Refused"]


class Refused(Exception):
    """Admission said no. `decision.reason` maps to the error table (policies.admission)."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.message or decision.reason)
        self.decision = decision

    @classmethod
    def unavailable(cls, why: str) -> Refused:
        """A part that must answer does not: come back in a second."""
        reason = Reason.unavailable.value
        return cls(Decision(outcome="refused", reason=reason, message=why, retry_after_s=1.0))


class GenerationFailed(Exception):
    """An admitted request cannot be finished, with the reason for the client (a mid-stream error event)."""


@dataclass(slots=True)
class Delivery:
    """Outputs that came since the last read, in order, none missing, none twice."""

    tokens: list[int]
    finish: Finish  # not `none` on the last delivery alone
    logprobs: list[list[tuple[int, float]]] = field(default_factory=list)  # per token, if asked: the chosen one first


class Generation(Protocol):
    """One admitted request."""

    @property
    def request(self) -> Request: ...
    @property
    def decision(self) -> Decision: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...

    def deliveries(self) -> AsyncIterator[Delivery]:
        """Yield until the last. Raises GenerationFailed. A slow reader gets larger deliveries, never an unbounded
        queue."""
        ...

    async def close(self, finish: Finish = Finish.cancelled) -> None:
        """End it, over or not: blocks are freed, usage is settled. Idempotent. `Finish.stop` after a stop string."""
        ...


class Frontend(Protocol):
    """What the HTTP side may ask of everything behind it."""

    async def admit(self, request: Request, *, key: str, patience_s: float, retries: int = 0) -> Generation:
        """Wait for the final decision. Raises Refused. Cancelling the caller withdraws the request."""
        ...

    async def explain(self, request: Request) -> Decision:
        """What admission would say now; nothing is reserved."""
        ...

    async def quota(self, tenant: str) -> Quota | None:
        """The tenant's limits now, for headers; None if admission does not answer."""
        ...

    def not_ready(self) -> list[str]:
        """Why this gateway cannot serve: empty when it can (NATS, a worker for each model, predictor warm)."""
        ...
