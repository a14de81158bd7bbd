"""The traces of a gateway's requests, where its two halves meet: HTTP opens and ends the span of a request, the actor
hears what happens to it behind the gateway.

A gateway is the one that sees how a request ends, so it decides which of those that were not sampled are kept, and asks
the others to record what they hold of them (docs/adr/0007-traces-are-kept-for-what-matters.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

from opentelemetry.util.types import AttributeValue

from observability.held import HeldSpans
from observability.server_span import ServerSpan

__all__ = ["RequestTraces"]

#: Ended requests that a scheduler may still ask to keep.
_KEPT_ENDED = 2048


class RequestTraces:
    """By the ids of the generations that a request asked for: a request has one span and maybe several of them."""

    def __init__(self) -> None:
        self._open: dict[str, ServerSpan] = {}
        self._ended = HeldSpans(_KEPT_ENDED)
        self._to_ask: list[str] = []

    def opened(self, generation: str, span: ServerSpan) -> None:
        """This generation goes to the actors."""
        self._open[generation] = span

    def happened(self, generation: str, name: str, attributes: Mapping[str, AttributeValue]) -> None:
        """Something went wrong with it, and was repaired: an event, and a reason to keep the trace."""
        span = self._open.get(generation)
        if span is not None:
            span.add_event(name, attributes)
            span.keep()

    def keep(self, generations: Iterable[str]) -> None:
        """Asked for by a scheduler: those that are open are kept when they end, those that have ended at once."""
        for generation in generations:
            span = self._open.get(generation)
            if span is not None:
                span.keep()
            else:
                self._ended.keep((generation,))

    def closed(self, generations: list[str], span: ServerSpan, *, reached_others: bool) -> None:
        """The request is over. `reached_others`: somebody but admission had to do with it, or did not refuse it."""
        for generation in generations:
            self._open.pop(generation, None)
        span.end()
        if not generations or not span.can_be_kept:
            return  # everybody recorded it anyway, or nobody can
        late = partial(self._kept, generations, span)
        if span.is_kept:
            if reached_others:
                late()
        else:
            for generation in generations:
                self._ended.hold(generation, late)

    def _kept(self, generations: list[str], span: ServerSpan) -> None:
        span.keep()
        self._to_ask += generations

    def take_to_ask(self) -> list[str]:
        """The generations whose spans everybody is to record, since the last time."""
        taken, self._to_ask = self._to_ask, []
        return taken
