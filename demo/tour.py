"""The scripted tour: two tenants with different contracts, one of which floods; what each was promised, and what it
got.

Everything goes through the official `openai` client over HTTP, as a customer's program would; nothing looks inside.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from random import Random

import openai

from demo.tasks import Task, check, sample

__all__ = ["Asked", "Report", "Tour"]

#: What the tenants ask: short answers for gold, as a person would wait for; long ones for the flood.
_GOLD_KINDS = ("add", "sort", "reverse", "spell", "date", "copy")
_FLOOD_KINDS = ("count",)
_MAX_TOKENS = 256


@dataclass(slots=True)
class Asked:
    """One question as its client saw it. Times are seconds from sending."""

    tenant: str
    task: Task
    text: str = ""
    ttft_s: float | None = None
    tpot_s: float | None = None
    decision: str = ""  # admitted | deferred | refused
    reason: str = ""  # of a refusal: the error's code
    message: str = ""
    status: int = 200
    retry_after_ms: str = ""
    request_id: str = ""

    @property
    def is_right(self) -> bool:
        return check(self.task, self.text)


@dataclass(slots=True)
class Report:
    """All that was asked while the flood was on, and what the model can do alone."""

    capacity_per_s: float
    flood_per_s: float
    alone: tuple[int, int]  # right, asked
    asked: list[Asked] = field(default_factory=list)

    def of(self, tenant: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.tenant == tenant]

    def admitted(self, tenant: str) -> list[Asked]:
        return [asked for asked in self.of(tenant) if asked.status == 200]

    def refusals(self, tenant: str) -> Counter[str]:
        return Counter(asked.reason for asked in self.of(tenant) if asked.status != 200)


class Tour:
    """`keys` maps the two tenants' names to their API keys; `say` is called with lines of progress."""

    def __init__(self, base_url: str, model: str, keys: dict[str, str], *, say: Callable[[str], None]) -> None:
        self._model = model
        self._say = say
        self._clients = {
            # Retries would hide the refusals. The flood waits 4 s at most: the SDK tells the gateway, which refuses
            # what takes longer.
            tenant: openai.AsyncOpenAI(
                base_url=base_url, api_key=key, max_retries=0, timeout=4.0 if tenant == "free" else 30.0
            )
            for tenant, key in keys.items()
        }

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()

    async def show(self, tenant: str, task: Task) -> Asked:
        """Stream one chat, telling how it came."""
        asked = await self.ask(tenant, task)
        ttft = "" if asked.ttft_s is None else f"first token after {1000 * asked.ttft_s:.0f} ms"
        pace = "" if asked.tpot_s is None else f", then one every {1000 * asked.tpot_s:.1f} ms"
        self._say(f"  {tenant:>5}: {task.prompt}  →  {asked.text}   ({ttft}{pace})")
        return asked

    async def ask(self, tenant: str, task: Task) -> Asked:
        """Ask one question and stream the answer. A refusal is an answer too; other errors are raised."""
        asked = Asked(tenant, task)
        began = time.perf_counter()
        try:
            raw = await self._clients[tenant].chat.completions.with_raw_response.create(
                model=self._model,
                messages=[{"role": "user", "content": task.prompt}],
                temperature=0,
                max_tokens=_MAX_TOKENS,
                stream=True,
                stream_options={"include_usage": True},
            )
            asked.request_id = raw.headers["x-request-id"]
            asked.decision = raw.headers["x-headgate-decision"]
            await self._read(asked, raw.parse(), began)
        except openai.APIStatusError as error:
            asked.status = error.status_code
            asked.decision = "refused"
            asked.reason, asked.message = str(error.code), error.message
            asked.retry_after_ms = error.response.headers.get("retry-after-ms", "")
            asked.request_id = error.response.headers.get("x-request-id", "")
        return asked

    @staticmethod
    async def _read(
        asked: Asked, chunks: openai.AsyncStream[openai.types.chat.ChatCompletionChunk], began: float
    ) -> None:
        last, tokens = began, 0
        async for chunk in chunks:
            if chunk.usage is not None:
                tokens = chunk.usage.completion_tokens
            if chunk.choices and chunk.choices[0].delta.content:
                last = time.perf_counter()
                if asked.ttft_s is None:
                    asked.ttft_s = last - began
                asked.text += chunk.choices[0].delta.content
        if tokens > 1 and asked.ttft_s is not None:
            asked.tpot_s = (last - began - asked.ttft_s) / (tokens - 1)

    async def run(self, *, flood_s: float, times_capacity: float, seed: int = 1) -> Report:
        """Ask every question alone first, measure the capacity, then flood `free` while `gold` keeps asking."""
        rng = Random(seed)
        gold, flood = (
            [_question(kind, rng) for kind in 24 // len(kinds) * kinds] for kinds in (_GOLD_KINDS, _FLOOD_KINDS)
        )
        alone = [await self.ask("gold", task) for task in (*gold, *flood)]
        known = {id(asked.task) for asked in alone if asked.is_right}
        self._say(f"  asked one at a time, {len(known)} of {len(alone)} answers are right; those are asked under load")
        gold, flood = ([task for task in tasks if id(task) in known] for tasks in (gold, flood))
        capacity = await self._capacity(flood)
        rate = times_capacity * capacity
        self._say(
            f"  it completes {capacity:.0f} of free's requests a second;"
            f" free now sends {rate:.0f} a second for {flood_s:.0f} s"
        )
        report = Report(capacity, rate, (len(known), len(alone)))
        await self._flood(report, cycle(gold), cycle(flood), rate=rate, flood_s=flood_s)
        return report

    async def _capacity(self, tasks: list[Task], *, seconds: float = 2.0) -> float:
        """Completions a second with a few more clients than the worker has slots."""
        questions, done = cycle(tasks), 0
        until = time.perf_counter() + seconds

        async def client() -> None:
            nonlocal done
            while time.perf_counter() < until:
                asked = await self.ask("free", next(questions))
                done += asked.status == 200
                await asyncio.sleep(float(asked.retry_after_ms or 0) / 1000)  # as a refused client should

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(12)))
        return done / (time.perf_counter() - began)

    async def _flood(
        self, report: Report, gold: Iterator[Task], flood: Iterator[Task], *, rate: float, flood_s: float
    ) -> None:
        under_way: set[asyncio.Task[None]] = set()

        async def one(tenant: str, task: Task) -> None:
            report.asked.append(await self.ask(tenant, task))

        async def keep_asking() -> None:
            while time.perf_counter() < until:
                await one("gold", next(gold))
                await asyncio.sleep(0.05)

        began = time.perf_counter()
        until = began + flood_s
        customers = [asyncio.create_task(keep_asking()) for _ in range(2)]
        sent = 0
        while (now := time.perf_counter()) < until:
            for _ in range(int((now - began) * rate) - sent):
                task = asyncio.create_task(one("free", next(flood)))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                sent += 1
            await asyncio.sleep(0.005)
        await asyncio.gather(*customers, *under_way)


def _question(kind: str, rng: Random) -> Task:
    """One that training never saw, with an answer that fits (no token has less than a character)."""
    while True:
        task = sample(kind, rng, held_out=True)
        if len(task.answer) < _MAX_TOKENS:
            return task
