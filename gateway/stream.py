"""One generation as its gateway owns it: a pure state machine that puts tokens in order.

The gateway holds the prompt and every output its client may have seen; all behind it is soft state. Whatever goes wrong
there (a dead worker, a lost message, a new scheduler) has one repair: submit again as attempt + 1 with the outputs so
far.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import msgspec

from policies.vocabulary import Finish, Request, pack_tokens

__all__ = ["Stream", "Took"]

Logprobs = list[tuple[int, float]]


class Took(Enum):
    """What became of a token."""

    new = "new"
    ignored = "ignored"  # a duplicate, or of another attempt
    gap = "gap"  # one before it was lost: resume


@dataclass(slots=True)
class Stream:
    """State of one request at its gateway. Times are seconds of the caller's monotonic clock."""

    request: Request  # as last submitted
    arrived: float
    deadline: float | None  # for the first token
    tokens: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)
    finish: Finish = Finish.none
    error: str = ""
    heard: float = 0.0  # last sign of progress, or of a repair
    first_token: float | None = None
    last_token: float | None = None
    stalled_attempts: int = 0  # in a row, without a token

    #: So many attempts in a row without one token, and the request itself is taken to be what breaks the workers.
    MAX_STALLED_ATTEMPTS = 5

    @property
    def over(self) -> bool:
        return self.finish != Finish.none or bool(self.error)

    def take(self, attempt: int, index: int, token: int, finish: int, logprobs: Logprobs | None, now: float) -> Took:
        """Accept the output `index` of `attempt` if it is the next one."""
        if self.over or attempt != self.request.attempt or index < len(self.tokens):
            return Took.ignored
        if index > len(self.tokens):
            return Took.gap
        self.tokens.append(token)
        if self.request.sampling.logprobs >= 0:
            self.logprobs.append(logprobs or [])
        self.finish = Finish(finish)
        self.heard = self.last_token = now
        if self.first_token is None:
            self.first_token = now
        self.stalled_attempts = 0
        return Took.new

    def resume(self, now: float) -> Request | None:
        """The next attempt, with what the client has seen. None: it is over, by this at the latest."""
        if self.over:
            return None
        self.stalled_attempts += 1
        if self.stalled_attempts > self.MAX_STALLED_ATTEMPTS:
            self.error = f"no worker could continue this request in {self.MAX_STALLED_ATTEMPTS} attempts"
            return None
        self.heard = now
        left_s = None if self.deadline is None or self.tokens else max(0.0, self.deadline - now)
        self.request = msgspec.structs.replace(
            self.request, attempt=self.request.attempt + 1, generated=pack_tokens(self.tokens), ttft_s=left_s
        )
        return self.request

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_token is None else self.first_token - self.arrived

    @property
    def tpot_s(self) -> float | None:
        """Mean time of the tokens after the first; None with fewer than two."""
        if self.first_token is None or self.last_token is None or len(self.tokens) < 2:
            return None
        return (self.last_token - self.first_token) / (len(self.tokens) - 1)
