"""One answer on its way: the generations of all its choices, as text, as events or in one piece.

However it ends (a stop string, a failure, a client that left), every generation is closed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from gateway.choices import Choice, ScoredToken
from gateway.exchange import Exchange
from gateway.generation import Delivery, Generation, GenerationFailed
from gateway.openai import TierName, Usage
from gateway.parameters import Parameters
from gateway.text.tokenizer import ModelText
from gateway.wire import DONE, Answer, Result, Wire, usage_of
from policies.vocabulary import Finish, Tier

__all__ = ["Answering", "Job", "all_ended", "together"]

_TIER_NAMES: dict[Tier, TierName] = {Tier.priority: "priority", Tier.default: "default", Tier.flex: "flex"}


@dataclass(frozen=True, slots=True)
class Job:
    """What an endpoint makes of its body. `tokenise` takes a time that grows with `size`, in characters."""

    param: str  # the field with the prompt
    max_tokens: tuple[str, int | None]  # the field that gave it
    logprobs: int  # as in Sampling
    size: int
    tokenise: Callable[[], list[list[int]]]
    id_prefix: str
    wire: Callable[[Answer, bool], Wire]


class Answering:
    """The generations of one answer."""

    def __init__(
        self, exchange: Exchange, generations: list[Generation], model: ModelText, parameters: Parameters, job: Job
    ) -> None:
        self._exchange = exchange
        self._generations = generations
        self._choices = [
            Choice(index, generation.request, model, parameters.stop) for index, generation in enumerate(generations)
        ]
        self._scored = job.logprobs >= 0
        self._n = parameters.n
        self._include_usage = parameters.include_usage
        self._first: list[float | None] = [None] * len(generations)
        self._open = len(generations)
        self._closed: set[int] = set()
        answer = Answer(
            id=job.id_prefix + exchange.id.removeprefix("req-"),
            created=int(time.time()),
            model=model.name,
            service_tier=_TIER_NAMES[parameters.tier],
        )
        self._wire = job.wire(answer, parameters.include_usage)

    async def stream(self) -> None:
        """As events, choices interleaved as they come."""
        await self._exchange.start_stream()
        await together([self._stream_one(index) for index in range(len(self._choices))])

    async def _stream_one(self, index: int) -> None:
        choice, wire, write = self._choices[index], self._wire, self._exchange.write
        opening = wire.opening(index)
        async with _reading(self._generations[index]) as deliveries:
            async for delivery in deliveries:
                if self._first[index] is None:
                    self._note_first(index)
                text = choice.take(delivery)
                scores = choice.scores if self._scored else None
                if choice.reason is not None:
                    break
                if text or scores or opening:
                    events = opening + wire.piece(index, text, scores) if text or scores else opening
                    opening = b""
                    await write(events)
        reason = choice.reason
        if reason is None:
            raise GenerationFailed("its tokens ended without a reason")
        last = opening + wire.closing(index, text, scores, reason)
        self._open -= 1
        if self._open:
            await write(last)
            await self._close_one(index)
            return
        if self._include_usage:
            last += wire.usage(self._usage())
        await write(last + DONE, last=True)

    async def whole(self) -> None:
        """In one piece, when all choices are over."""
        results: list[Result] = await self._exchange.awaiting(
            together([self._collect(index) for index in range(len(self._choices))])
        )
        began = time.perf_counter()
        body = self._wire.whole(results, self._usage())
        self._exchange.observer.stage("encode", time.perf_counter() - began)
        await self._exchange.respond(body)

    async def _collect(self, index: int) -> Result:
        choice = self._choices[index]
        text: list[str] = []
        scores: list[ScoredToken] = []
        async with _reading(self._generations[index]) as deliveries:
            async for delivery in deliveries:
                if self._first[index] is None:
                    self._note_first(index)
                text.append(choice.take(delivery))
                scores += choice.scores
                if choice.reason is not None:
                    break
        if choice.reason is None:
            raise GenerationFailed("its tokens ended without a reason")
        if len(self._choices) > 1:
            await self._close_one(index)
        return Result(index, "".join(text), scores if self._scored else None, choice.reason)

    def _note_first(self, index: int) -> None:
        ttft_s = self._exchange.elapsed_s
        self._first[index] = ttft_s
        self._exchange.observer.first_token(self._generations[index].request, ttft_s)

    def _usage(self) -> Usage:
        prompts = self._generations[:: self._n]
        return usage_of(
            sum(generation.prompt_tokens for generation in prompts),
            sum(choice.produced for choice in self._choices),
            sum(generation.cached_tokens for generation in prompts),
        )

    def failed(self) -> None:
        """Those that are not over will never be."""
        for choice in self._choices:
            if choice.reason is None:
                choice.finish = Finish.error

    async def close(self) -> None:
        """End all of them, over or not."""
        await all_ended([self._close_one(index) for index in range(len(self._choices))])

    async def _close_one(self, index: int) -> None:
        if index in self._closed:
            return
        self._closed.add(index)
        choice, generation, first = self._choices[index], self._generations[index], self._first[index]
        tpot_s = None
        if first is not None and choice.produced > 1:
            tpot_s = (self._exchange.elapsed_s - first) / (choice.produced - 1)
        self._exchange.observer.generated(
            generation.request,
            output_tokens=choice.produced,
            cached_tokens=generation.cached_tokens,
            tpot_s=tpot_s,
            finish=choice.finish.name,
        )
        await generation.close(choice.finish)


@asynccontextmanager
async def _reading(generation: Generation) -> AsyncIterator[AsyncIterator[Delivery]]:
    """Its deliveries, whose iterator ends with the block: after a stop string there are some that nobody reads."""
    deliveries = generation.deliveries()
    try:
        yield deliveries
    finally:
        if isinstance(deliveries, AsyncGenerator):
            await deliveries.aclose()


async def all_ended(works: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Let every one of them run to its end, then raise the first failure."""
    for result in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


async def together(works: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """The results of all, in order; the first failure cancels the others, and is raised when they have ended."""
    if len(works) == 1:
        return [await works[0]]
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
