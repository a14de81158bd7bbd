"""The gateway actor: owns every stream of its clients, and repairs them.

Tokens come straight from the workers. When something is wrong behind the gateway, and only then, it talks to the
scheduler: it submits
a request again (see gateway/stream.py), or asks where a silent one is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from actors.messages import (
    Accepted,
    Admit,
    Cancel,
    Cancelled,
    Decision,
    Explain,
    Exposition,
    HandBack,
    Live,
    Load,
    Quota,
    QuotaQuery,
    ReportLive,
    Settle,
    Submit,
    Tokens,
    Where,
    Whereabouts,
)
from actors.runtime import Actor, ActorError, Context, Failed, Node, Peer, Watch, handles, heartbeat
from gateway.generation import Delivery, Generation, GenerationFailed, Refused
from gateway.stream import Stream, Took
from gateway.text.tokenizer import ModelText
from gateway.usage_log import UsageLog
from observability.merge import merged
from policies.vocabulary import Finish, Request

__all__ = ["GatewayActor"]

#: A stream that is silent for so long is asked about.
_SILENT_S = 1.0
#: So long a scheduler may be away before streams are given up.
_PATIENCE_S = 60.0
#: So long a new request waits for an admission actor that restarts.
_ADMISSION_AWAY_S = 5.0
#: Metrics of a process that told none for so long are left out.
_EXPOSITION_STALE_S = 10.0


class GatewayActor(Actor):
    """Implements `gateway.generation.Frontend` over messages."""

    role = "gateway"
    mailbox = 8192

    def __init__(
        self, *, models: Mapping[str, ModelText], usage: UsageLog, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._models = models
        self._usage = usage
        self._clock = clock
        self._open: dict[str, _Open] = {}
        self._all_over = asyncio.Event()
        self._endings: set[asyncio.Task[None]] = set()
        self._scheduler_epochs: dict[str, int] = {}
        self._loads: dict[str, Load] = {}
        self._load_at: dict[str, float] = {}
        self._expositions: dict[str, tuple[float, bytes]] = {}
        self._log = structlog.get_logger()

    # --- life
    # ---------------------------------------------------------------------------------------------------------

    async def on_start(self, node: Node) -> None:
        await Watch("scheduler", on_alive=self._scheduler_alive, on_death=lambda death: None).start(self)
        await self.listen("scheduler", Load, self._heard_load)
        for role in ("admission", "scheduler", "worker", "ledger"):
            await self.listen(role, Exposition, self._heard_metrics)
        await self.listen("admission", ReportLive, self._report_asked)
        heartbeat(self, info=self._info)
        self.every(1.0, self._report_live)
        self.every(0.25, self._ask_about_silent)

    async def on_drain(self) -> None:
        """Streams go on until they end or the drain's time is over; then they are closed and settled."""
        if self._open:
            await self._all_over.wait()

    async def on_stop(self) -> None:
        await asyncio.gather(*(opened.close() for opened in list(self._open.values())))
        await asyncio.gather(*self._endings)

    def ending(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run the end of a request to its own end: neither its client nor the drain may cut it short."""
        task = asyncio.create_task(coroutine)
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)
        return task

    def forget(self, request_id: str) -> None:
        """A request that was refused leaves nothing behind."""
        self._open.pop(request_id, None)
        if not self._open:
            self._all_over.set()

    def _info(self) -> dict[str, object]:
        return {"pid": os.getpid(), "state": "ready" if not self.not_ready() else "starting"}

    # --- the frontend
    # -------------------------------------------------------------------------------------------------

    async def admit(self, request: Request, *, key: str, patience_s: float, retries: int = 0) -> Generation:
        if self.node.is_draining:
            why = "this gateway is shutting down"
            raise Refused(Decision(outcome="refused", reason="unavailable", message=why, retry_after_s=1.0))
        arrived = self._clock()
        deadline = None if request.ttft_s is None else arrived + request.ttft_s
        opened = _Open(self, Stream(request, arrived, deadline, heard=arrived))
        self._all_over.clear()
        self._open[request.id] = opened  # before asking: tokens may overtake the decision
        try:
            decision = await self._ask_admission(request, patience_s=patience_s, retries=retries)
            if decision.outcome != "admitted":
                raise Refused(decision)
            opened.decision = decision
            opened.admitted = True
            await self._usage.opened(request, key=key)
        except BaseException as error:
            self.ending(opened.withdraw(refused=isinstance(error, Refused)))
            raise
        return opened

    async def _ask_admission(self, request: Request, *, patience_s: float, retries: int) -> Decision:
        """Ask until there is an answer: admission may be restarting. The same request asked twice is reserved
        once."""
        asked = self._clock()
        while True:
            waited = self._clock() - asked
            message = Admit(request=request, patience_s=patience_s - waited, retries=retries)
            try:
                return await self.node.ask(
                    "admission.any", message, want=Decision, timeout_s=max(0.1, patience_s - waited + 1.0)
                )
            except ActorError as error:
                if self._clock() - asked > min(_ADMISSION_AWAY_S, patience_s):
                    why = f"the admission service does not answer ({error})"
                    raise Refused(
                        Decision(outcome="refused", reason="unavailable", message=why, retry_after_s=1.0)
                    ) from error
            await asyncio.sleep(0.05)

    async def explain(self, request: Request) -> Decision:
        return await self.node.ask("admission.any", Explain(request=request), want=Decision, timeout_s=2.0)

    async def quota(self, tenant: str) -> Quota | None:
        try:
            return await self.node.ask("admission.any", QuotaQuery(tenant=tenant), want=Quota, timeout_s=0.5)
        except ActorError:
            return None

    def not_ready(self) -> list[str]:
        reasons = [] if self.node.transport.is_connected else ["not connected to NATS"]
        for model in self._models:
            load = self._loads.get(model)
            if load is None or self._clock() - self._load_at[model] > 2.0:
                reasons.append(f"no scheduler for model {model}")
            elif not load.workers:
                reasons.append(f"no worker for model {model}")
        return reasons

    # --- tokens
    # -------------------------------------------------------------------------------------------------------

    @handles
    def tokens(self, msg: Tokens, ctx: Context) -> None:
        now = self._clock()
        for i, request in enumerate(msg.requests):
            opened = self._open.get(request)
            if opened is None:
                continue
            logprobs = msg.logprobs.get(i) if msg.logprobs else None
            took = opened.stream.take(msg.attempts[i], msg.indices[i], msg.tokens[i], msg.finished[i], logprobs, now)
            if took is Took.new:
                if i in msg.cached and msg.indices[i] == 0:
                    opened.cached_tokens = msg.cached[i]
                opened.wake.set()
            elif took is Took.gap:
                self._resume(opened, "a token was lost")

    @handles
    def hand_back(self, msg: HandBack, ctx: Context) -> None:
        for request, attempt, error in zip(msg.requests, msg.attempts, msg.errors, strict=True):
            opened = self._open.get(request)
            if opened is None or opened.stream.request.attempt != attempt:
                continue
            if error:
                opened.fail(error)
            else:
                self._resume(opened, "its worker died")

    def _scheduler_alive(self, peer: Peer) -> None:
        """A new scheduler knows nothing: submit to it what the old one served."""
        model = str(peer.info.get("model"))
        known = self._scheduler_epochs.get(model, 0)
        if peer.epoch <= known:
            return
        self._scheduler_epochs[model] = peer.epoch
        if known:
            for opened in list(self._open.values()):
                if opened.admitted and opened.stream.request.model == model:
                    self._resume(opened, "the scheduler is new")

    def _resume(self, opened: _Open, why: str) -> None:
        request = opened.stream.resume(self._clock())
        if request is None:
            opened.wake.set()
            return
        self._log.info(
            "resumed", request_id=request.id, attempt=request.attempt, tokens=len(request.generated) // 4, why=why
        )
        self.spawn(self._submit(opened, request))

    async def _submit(self, opened: _Open, request: Request) -> None:
        """Until the scheduler has it, or a newer attempt replaced it, or patience is over."""
        until = self._clock() + _PATIENCE_S
        while self._clock() < until:
            if opened.stream.over or opened.stream.request.attempt != request.attempt or opened.closed:
                return
            try:
                await self.node.ask(f"scheduler.{request.model}", Submit(request=request), want=Accepted, timeout_s=1.0)
                return
            except Failed as error:
                opened.fail(str(error))
                return
            except ActorError:
                await asyncio.sleep(0.1)
        opened.fail(f"no scheduler for model {request.model} for {_PATIENCE_S:.0f} s")

    async def _ask_about_silent(self) -> None:
        now = self._clock()
        silent: dict[str, list[_Open]] = {}
        for opened in self._open.values():
            if opened.admitted and not opened.stream.over and now - opened.stream.heard > _SILENT_S:
                silent.setdefault(opened.stream.request.model, []).append(opened)
        for model, streams in silent.items():
            await self._ask_where(model, streams)

    async def _ask_where(self, model: str, streams: list[_Open]) -> None:
        had = [(opened.stream.request.attempt, len(opened.stream.tokens)) for opened in streams]
        ids = [opened.stream.request.id for opened in streams]
        try:
            found = await self.node.ask(f"scheduler.{model}", Where(requests=ids), want=Whereabouts, timeout_s=1.0)
        except ActorError:
            return  # asked again soon, or its successor makes itself known
        for opened, (attempt, tokens), live, generated in zip(
            streams, had, found.attempts, found.generated, strict=True
        ):
            moved = (opened.stream.request.attempt, len(opened.stream.tokens)) != (attempt, tokens)
            if moved or opened.stream.over:
                continue
            if live < attempt or generated > tokens:
                self._resume(opened, "unknown to the scheduler" if live < attempt else "tokens were lost")
            else:
                opened.stream.heard = self._clock()  # it is only slow

    # --- the end
    # ------------------------------------------------------------------------------------------------------

    async def finish(self, opened: _Open, finish: Finish) -> None:
        """End a generation: off the device, settled with admission and in the usage stream."""
        stream = opened.stream
        request = stream.request
        output = len(stream.tokens)
        if not stream.over:
            stream.finish = finish
            try:
                cancelled = await self.node.ask(
                    f"scheduler.{request.model}", Cancel(request=request.id), want=Cancelled, timeout_s=2.0
                )
                output = max(output, cancelled.generated)
            except ActorError as error:
                self._log.warning("cancel was not confirmed", request_id=request.id, error=str(error))
        self.forget(request.id)
        attained = opened.attained() if finish != Finish.cancelled else None
        prompt = len(request.prompt) // 4
        self.node.tell_soon(
            "admission.any",
            Settle(
                request=request.id,
                tenant=request.tenant,
                prompt_tokens=prompt,
                output_tokens=output,
                ttft_s=stream.ttft_s,
                tpot_s=stream.tpot_s,
                attained=attained,
            ),
        )
        await self._usage.settled(request, output_tokens=output, cached_tokens=opened.cached_tokens, finish=finish)

    async def retract(self, opened: _Open) -> None:
        """It was never admitted, as far as we know: make sure that nothing of it stays anywhere."""
        request = opened.stream.request
        self.node.tell_soon("admission.any", Cancel(request=request.id))
        with contextlib.suppress(ActorError):  # a scheduler that died has nothing of it
            await self.node.ask(f"scheduler.{request.model}", Cancel(request=request.id), want=Cancelled, timeout_s=2.0)
        self.forget(request.id)

    # --- reports
    # ------------------------------------------------------------------------------------------------------

    def _heard_load(self, load: Load, ctx: Context) -> None:
        self._loads[load.model] = load
        self._load_at[load.model] = self._clock()
        served = max((worker.max_context for worker in load.workers), default=0)
        if served:
            self._models[load.model].max_context = served

    def _heard_metrics(self, exposition: Exposition, ctx: Context) -> None:
        self._expositions[ctx.sender] = (self._clock(), exposition.text)

    def exposition(self, own: CollectorRegistry) -> tuple[bytes, str]:
        """The body of /metrics and its content type: ours, and what every other process told lately."""
        since = self._clock() - _EXPOSITION_STALE_S
        self._expositions = {name: told for name, told in self._expositions.items() if told[0] > since}
        return merged(own, {name: text for name, (_, text) in self._expositions.items()})

    def _report_asked(self, msg: ReportLive, ctx: Context) -> None:
        self.spawn(self._report_live())

    async def _report_live(self) -> None:
        requests = [opened.stream.request for opened in self._open.values() if opened.admitted]
        live = Live(
            gateway=self.node.instance,
            requests=[request.id for request in requests],
            tenants=[request.tenant for request in requests],
            tokens=[len(request.prompt) // 4 + request.max_tokens for request in requests],
        )
        await self.node.publish(self.role, live)


class _Open:
    """A `Generation`: a stream, and the task that reads it."""

    def __init__(self, actor: GatewayActor, stream: Stream) -> None:
        self._actor = actor
        self.stream = stream
        self.wake = asyncio.Event()
        self.decision = Decision(outcome="")
        self.admitted = False
        self.closed = False
        self.cached_tokens = 0

    @property
    def request(self) -> Request:
        return self.stream.request

    @property
    def prompt_tokens(self) -> int:
        return len(self.stream.request.prompt) // 4

    async def deliveries(self) -> AsyncIterator[Delivery]:
        sent = 0
        stream = self.stream
        while True:
            await self.wake.wait()
            self.wake.clear()
            if stream.error:
                raise GenerationFailed(stream.error)
            until = len(stream.tokens)
            if until > sent or stream.over:
                yield Delivery(stream.tokens[sent:until], stream.finish, stream.logprobs[sent:until])
                sent = until
            if stream.over:
                return

    def fail(self, error: str) -> None:
        if not self.stream.over:
            self.stream.error = error
        self.wake.set()

    def attained(self) -> bool | None:
        """Whether the contract was kept; None where there was none."""
        request, stream = self.stream.request, self.stream
        if stream.deadline is None and request.tpot_s is None:
            return None
        if stream.error or stream.first_token is None:
            return False
        in_time = stream.deadline is None or stream.first_token <= stream.deadline
        tpot_s = stream.tpot_s
        return in_time and (request.tpot_s is None or tpot_s is None or tpot_s <= request.tpot_s)

    async def close(self, finish: Finish = Finish.cancelled) -> None:
        if self.closed:
            return
        self.closed = True
        stream = self.stream
        ended = Finish.error if stream.error else stream.finish if stream.finish != Finish.none else finish
        await asyncio.shield(self._actor.ending(self._actor.finish(self, ended)))

    async def withdraw(self, *, refused: bool) -> None:
        """The request was not admitted, or its client left before that was known."""
        self.closed = True
        if refused:
            self._actor.forget(self.stream.request.id)
        elif self.admitted:
            await self._actor.finish(self, Finish.cancelled)
        else:
            await self._actor.retract(self)
