"""A generation as its HTTP handler holds it: `gateway.generation.Generation` over a stream of the gateway actor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from actors.messages import Decision
from gateway.generation import Delivery, GenerationFailed
from gateway.stream import Stream
from policies.vocabulary import Finish, Request

__all__ = ["OpenStream"]


class OpenStream:
    """`finish(stream, finish)` ends it behind the gateway: off the device, settled. It is called once, and never cut
    short."""

    def __init__(self, stream: Stream, *, finish: Callable[[OpenStream, Finish], Awaitable[None]]) -> None:
        self.stream = stream
        self.decision = Decision(outcome="")
        self.is_admitted = False
        self.is_closed = False
        self.cached_tokens = 0
        self._finish = finish
        self._news = asyncio.Event()

    @property
    def request(self) -> Request:
        """As last submitted."""
        return self.stream.request

    @property
    def prompt_tokens(self) -> int:
        return len(self.stream.request.prompt) // 4

    def wake(self) -> None:
        """There is something to deliver."""
        self._news.set()

    def fail(self, error: str) -> None:
        """It cannot be finished."""
        if not self.stream.over:
            self.stream.error = error
        self.wake()

    async def deliveries(self) -> AsyncIterator[Delivery]:
        """See `Generation.deliveries`."""
        sent = 0
        stream = self.stream
        while True:
            await self._news.wait()
            self._news.clear()
            if stream.error:
                raise GenerationFailed(stream.error)
            until, is_over = len(stream.tokens), stream.over  # what comes while the reader is busy is for the next turn
            if until > sent or is_over:
                yield Delivery(stream.tokens[sent:until], stream.finish, stream.logprobs[sent:until])
                sent = until
            if is_over:
                return

    async def close(self, finish: Finish = Finish.cancelled) -> None:
        """See `Generation.close`. A generation that is over ended as it did, whatever `finish` says."""
        if self.is_closed:
            return
        self.is_closed = True
        if self.stream.error:
            finish = Finish.error
        elif self.stream.finish != Finish.none:
            finish = self.stream.finish
        await self._finish(self, finish)

    def kept(self) -> tuple[bool | None, bool | None]:
        """Whether TTFT and TPOT were kept; None: not promised, or there was no second output to tell a pace by."""
        request, stream = self.stream.request, self.stream
        first, tpot_s = stream.first_token, stream.tpot_s
        return (
            None if stream.deadline is None else not stream.error and first is not None and first <= stream.deadline,
            None if request.tpot_s is None or tpot_s is None else tpot_s <= request.tpot_s,
        )
