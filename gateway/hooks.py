"""What the edge tells about each request, to whoever measures and traces: a protocol, and one that does nothing.

The edge imports no metrics library and no tracer. A request is one `Observer`; it is told facts as they happen and
never asked anything but the `traceparent` that goes on to the actors.
"""

from __future__ import annotations

import secrets
from typing import Protocol

from actors.messages import Decision
from observability.traceparent import parse_traceparent
from policies.vocabulary import Request

__all__ = ["Hooks", "NoHooks", "Observer"]


class Observer(Protocol):
    """One HTTP request, from its headers to its end. Methods must not block or raise."""

    traceparent: str
    """W3C context of the request's server span: sent behind and returned to the client."""

    def stage(self, name: str, seconds: float) -> None:
        """Time of the gateway's own work: `parse`, `tokenise`, `validate` or `encode` (overhead_seconds{stage})."""
        ...

    def asked(self, request: Request, *, tenant: str, key: str, stream: bool) -> None:
        """It is valid and goes to admission now; once per choice. Prompts must not be recorded from it."""
        ...

    def decided(self, request: Request, decision: Decision, waited_s: float) -> None:
        """Admission's final word on one choice, and how long it was awaited."""
        ...

    def first_token(self, request: Request, ttft_s: float) -> None:
        """First output of one choice, from the arrival of the HTTP request."""
        ...

    def generated(
        self, request: Request, *, output_tokens: int, cached_tokens: int, tpot_s: float | None, finish: str
    ) -> None:
        """One choice is over: `finish` is stop, length, cancelled or error. `tpot_s` is the mean over the later
        tokens.
        """
        ...

    def finished(self, *, status: int, outcome: str, seconds: float) -> None:
        """The HTTP request is over. `outcome`: ok, refused, invalid, unauthorized, cancelled or error. Always called,
        once.
        """
        ...


class Hooks(Protocol):
    """Makes the observer of each request for a generation; probes, scrapes and lists of models have none."""

    def start(self, route: str, *, request_id: str, traceparent: str | None) -> Observer:
        """`route` is the span's name, such as `POST /v1/chat/completions`; `traceparent` what the client sent,
        unchecked.
        """
        ...


class _Silent:
    """Passes the trace context on, and tells nobody."""

    __slots__ = ("traceparent",)

    def __init__(self, traceparent: str) -> None:
        self.traceparent = traceparent

    def stage(self, name: str, seconds: float) -> None:
        pass

    def asked(self, request: Request, *, tenant: str, key: str, stream: bool) -> None:
        pass

    def decided(self, request: Request, decision: Decision, waited_s: float) -> None:
        pass

    def first_token(self, request: Request, ttft_s: float) -> None:
        pass

    def generated(
        self, request: Request, *, output_tokens: int, cached_tokens: int, tpot_s: float | None, finish: str
    ) -> None:
        pass

    def finished(self, *, status: int, outcome: str, seconds: float) -> None:
        pass


class NoHooks:
    """Measures nothing; continues a valid trace context with a span id of its own, and samples no other."""

    def start(self, route: str, *, request_id: str, traceparent: str | None) -> Observer:
        parent = parse_traceparent(traceparent)
        if parent is None:
            return _Silent(f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00")
        return _Silent(f"00-{parent.trace_id:032x}-{secrets.token_hex(8)}-{int(parent.trace_flags):02x}")
