"""Plays a workload against a running stack, as its tenants' clients would, and notes what each of them saw.

Open loop: a request is sent at its time, whatever became of those before. The outcomes have the form of a simulation's,
so that both are judged by the same figures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import httpx
import msgspec

from headgate.errors import HeadgateError
from policies.vocabulary import Tier
from simulator.records import Arrival, Outcome, Result, Workload

__all__ = ["Target", "replay"]

_CONNECT_S = 5.0
_ANSWER_S = 600.0


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where to send requests: the API's address, the model's name, and a key for every tenant of the workload."""

    url: str
    model: str
    keys: Mapping[str, str]
    #: Prompts are random ids below this. Small enough for any model; no two prompts share a block, also of two runs.
    vocabulary: int = 256


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Chunk(msgspec.Struct):
    choices: list[Any] = []
    usage: _Usage | None = None


_chunk = msgspec.json.Decoder(_Chunk)


async def replay(
    workload: Workload, target: Target, *, load: float = 1.0, progress: Callable[[float], None] | None = None
) -> Result:
    """Send every arrival at its time divided by `load`, and wait for the last answer.

    Each asks for exactly its `output_tokens`. Refused ones do not come again. `progress` is given the share sent.

    :raises HeadgateError: an answer is neither a stream of the asked length nor a refusal.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    timeout = httpx.Timeout(_ANSWER_S, connect=_CONNECT_S)
    async with httpx.AsyncClient(base_url=target.url, limits=limits, timeout=timeout, trust_env=False) as http:
        began = time.perf_counter()
        run = time.time_ns()  # so that no prompt is in the prefix cache from a run before
        tasks: list[asyncio.Task[Outcome]] = []
        try:
            for number, arrival in enumerate(workload.arrivals):
                at_s = arrival.at_s / load
                payload = _payload(arrival, target, run + number)
                await asyncio.sleep(max(0.0, began + at_s - time.perf_counter()))
                outcome = _expected(workload, arrival, at_s)
                tasks.append(asyncio.create_task(_ask(http, target.keys[arrival.tenant], payload, outcome, began)))
                if progress is not None:
                    progress((number + 1) / len(workload.arrivals))
            outcomes = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    ended_s = time.perf_counter() - began
    return Result(
        workload=workload.name,
        policy="live",
        device="live",
        workers=1,
        load=load,
        seed=0,
        outcomes=list(outcomes),
        ended_s=ended_s,
        wall_s=ended_s,
        steps=0,
        busy_s=0.0,
        computed_tokens=0,
        lost_tokens=0,
        swapped_bytes=0,
    )


def _payload(arrival: Arrival, target: Target, seed: int) -> bytes:
    draw = Random(seed)
    body = {
        "model": target.model,
        "prompt": [draw.randrange(1, target.vocabulary) for _ in range(arrival.prompt_tokens)],
        "max_tokens": arrival.output_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return msgspec.json.encode(body)


def _expected(workload: Workload, arrival: Arrival, at_s: float) -> Outcome:
    contract = workload.contract(arrival)
    ttft_s = None
    if contract.ttft_ms is not None:
        ttft_s = (contract.ttft_ms + contract.ttft_per_1k_ms * arrival.prompt_tokens / 1000) / 1000
    return Outcome(
        id=arrival.id,
        tenant=arrival.tenant,
        tier=int(Tier[contract.tier]),
        arrived_s=at_s,
        prompt_tokens=arrival.prompt_tokens,
        output_tokens=arrival.output_tokens,
        ttft_s=ttft_s,
        tpot_s=None if contract.tpot_ms is None else contract.tpot_ms / 1000,
    )


async def _ask(http: httpx.AsyncClient, key: str, payload: bytes, outcome: Outcome, began: float) -> Outcome:
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    outcome.arrived_s = time.perf_counter() - began  # the truth, should this process have been late
    try:
        async with http.stream("POST", "/v1/completions", content=payload, headers=headers) as answer:
            outcome.decided_s = time.perf_counter() - began
            if answer.status_code != httpx.codes.OK:
                _refused(outcome, answer, await answer.aread())
                return outcome
            predicted = answer.headers.get("x-headgate-predicted-ttft-ms")
            outcome.predicted_ttft_s = float(predicted) / 1000 if predicted else None
            outcome.decision = "admitted"
            await _read(answer, outcome, began)
    except httpx.HTTPError as error:
        raise HeadgateError(f"request {outcome.id}: no whole answer: {str(error) or type(error).__name__}") from error
    if outcome.generated != outcome.output_tokens:
        raise HeadgateError(f"request {outcome.id}: {outcome.generated} tokens came, {outcome.output_tokens} were due")
    return outcome


def _refused(outcome: Outcome, answer: httpx.Response, body: bytes) -> None:
    try:
        error = msgspec.json.decode(body)["error"]
        code = str(error["code"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        raise HeadgateError(f"request {outcome.id}: HTTP {answer.status_code}: {body[:200]!r}") from None
    if answer.status_code not in (429, 503):
        raise HeadgateError(f"request {outcome.id}: HTTP {answer.status_code}: {error.get('message', code)}")
    outcome.decision, outcome.reason = "refused", str(error.get("reason", code))
    retry = answer.headers.get("retry-after-ms")
    outcome.retry_after_s = float(retry) / 1000 if retry else None


async def _read(answer: httpx.Response, outcome: Outcome, began: float) -> None:
    rest = b""
    async for piece in answer.aiter_bytes():
        now = time.perf_counter() - began
        # By hand: lines of text would also end at the separators of Unicode, which tokens may be.
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                _note(outcome, _chunk.decode(line[6:]), now)


def _note(outcome: Outcome, chunk: _Chunk, now: float) -> None:
    if chunk.usage is not None:
        outcome.generated = chunk.usage.completion_tokens
    if chunk.choices:
        if outcome.first_token_s is None:
            outcome.first_token_s = now
        outcome.finished_s = now
