"""The gateway actor: owns every stream of its clients, and repairs them.

Tokens come straight from the workers. When something is wrong behind the gateway, and only then, it talks to the
scheduler: it submits a request again (see gateway/stream.py), or asks where a silent one is.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import structlog

from actors.messages import Decision, Exposition, HandBack, Keep, Live, Load, Quota, ReportLive, Settle, Tokens
from actors.runtime import Actor, Alive, Context, Node, Peer, Watch, handles, heartbeat
from gateway.asking import AskAdmission, AskScheduler
from gateway.generation import Generation, GenerationFailed, Refused
from gateway.open_stream import OpenStream
from gateway.stack_view import StackView
from gateway.stream import Stream, Took
from gateway.text.tokenizer import ModelText
from gateway.traces import RequestTraces
from gateway.usage_log import UsageLog
from observability.traceparent import log_ids
from policies.vocabulary import Finish, Request

__all__ = ["RESUMED", "GatewayActor"]

#: Why a stream goes on as another attempt.
RESUMED = (
    "a token was lost",
    "its worker died",
    "the scheduler is new",
    "tokens were lost",
    "unknown to the scheduler",
)

#: A stream that is silent for so long is asked about.
_SILENT_S = 1.0
#: Requests for which stray tokens were answered with a cancel already.
_KEPT_STRAYS = 4096


class GatewayActor(Actor):
    """Implements `gateway.generation.Frontend` over messages."""

    role = "gateway"
    mailbox = 8192

    def __init__(
        self,
        *,
        models: Mapping[str, ModelText],
        usage: UsageLog,
        clock: Callable[[], float] = time.monotonic,
        traces: RequestTraces | None = None,
    ) -> None:
        self.view = StackView(models, clock)
        self._usage = usage
        self._traces = traces or RequestTraces()
        self._clock = clock
        self._open: dict[str, OpenStream] = {}
        #: How often streams went on as another attempt, by why.
        self.resumed: Counter[str] = Counter()
        self._all_over = asyncio.Event()
        self._endings: set[asyncio.Task[None]] = set()
        self._scheduler_epochs: dict[str, int] = {}
        self._strays: set[str] = set()
        self._started = False  # HTTP is served a little earlier than messages
        self._log = structlog.get_logger()

    # --- life ---------------------------------------------------------------------------------------------------------

    @property
    def open_streams(self) -> tuple[int, int]:
        """How many are admitted, and how many wait for a decision."""
        admitted = sum(opened.is_admitted for opened in self._open.values())
        return admitted, len(self._open) - admitted

    async def on_start(self, node: Node) -> None:
        self._admission = AskAdmission(node, self._clock)
        self._schedulers = AskScheduler(node, self._clock)
        await Watch("scheduler", on_alive=self._scheduler_alive, on_death=lambda death: None).start(self)
        await self.listen("scheduler", Load, self.view.heard_load)
        for role in ("admission", "scheduler", "worker", "ledger"):
            await self.listen(role, Exposition, self.view.heard_metrics)
        for role in ("admission", "scheduler", "worker", "ledger", "gateway"):
            await self.listen(role, Alive, self.view.heard_alive)
        await self.listen("admission", ReportLive, self._report_asked)
        heartbeat(self, info=self._info)
        self.every(1.0, self._report_live)
        self.every(0.25, self._ask_about_silent)
        self.every(0.1, self._ask_for_spans)
        self._started = True

    async def on_drain(self) -> None:
        """Streams go on until they end or the drain's time is over; then they are closed and settled."""
        if self._open:
            await self._all_over.wait()

    async def on_stop(self) -> None:
        # One without a decision was never written ahead: settled, it would be usage of nobody.
        left = list(self._open.values())
        await asyncio.gather(*(one.close() if one.is_admitted else self._withdraw(one.request) for one in left))
        await asyncio.gather(*self._endings)
        await self._ask_for_spans()

    def _info(self) -> dict[str, object]:
        state = "draining" if self.node.is_draining else "starting" if self.not_ready() else "ready"
        return {"pid": os.getpid(), "state": state}

    def _ending(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run the end of a request to its own end: neither its client nor the drain may cut it short."""
        task = asyncio.create_task(coroutine)
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)
        return task

    # --- the frontend -------------------------------------------------------------------------------------------------

    async def admit(self, request: Request, *, key: str, patience_s: float, retries: int = 0) -> Generation:
        if not self._started or self.node.is_draining:
            why = f"this gateway is {'shutting down' if self._started else 'starting'}"
            raise Refused.unavailable(why)
        arrived = self._clock()
        deadline = None if request.ttft_s is None else arrived + request.ttft_s
        opened = OpenStream(Stream(request, arrived, deadline, heard=arrived), finish=self._finish)
        self._all_over.clear()
        self._open[request.id] = opened  # before asking: tokens may overtake the decision
        try:
            opened.decision = await self._admission.admit(request, patience_s=patience_s, retries=retries)
            if opened.decision.outcome != "admitted":
                self._forget(request.id)
                raise Refused(opened.decision)
            opened.is_admitted = True
            await self._usage.opened(request, key=key)
        except BaseException:
            opened.is_closed = True
            if request.id in self._open:
                self._ending(self._end(opened, Finish.cancelled) if opened.is_admitted else self._withdraw(request))
            raise
        return opened

    async def explain(self, request: Request) -> Decision:
        return await self._admission.explain(request)

    async def quota(self, tenant: str) -> Quota | None:
        return await self._admission.quota(tenant)

    def not_ready(self) -> list[str]:
        if not self._started:
            return ["this gateway is starting"]
        if self.node.is_draining:
            return ["this gateway is draining: streams end, and nothing new is taken"]
        return self.view.not_ready(is_connected=self.node.transport.is_connected)

    # --- tokens -------------------------------------------------------------------------------------------------------

    @handles
    def tokens(self, msg: Tokens, ctx: Context) -> None:
        now = self._clock()
        for i, request in enumerate(msg.requests):
            opened = self._open.get(request)
            if opened is None:
                self._cancel_stray(request)
                continue
            logprobs = msg.logprobs.get(i) if msg.logprobs else None
            index = msg.indices[i]
            took = opened.stream.take(msg.attempts[i], index, msg.tokens[i], msg.finished[i], logprobs, now)
            if took is Took.new:
                if index == 0:
                    opened.cached_tokens = msg.cached.get(i, 0)
                opened.wake()
            elif took is Took.gap:
                self._resume(opened, "a token was lost")

    def _cancel_stray(self, request: str) -> None:
        """Tokens for nobody: a cancel was lost, or it overtook the submit."""
        if request in self._strays or not self._scheduler_epochs:
            return  # told already; or nobody to tell is known yet, and the next tokens come soon
        if len(self._strays) >= _KEPT_STRAYS:
            self._strays.clear()
        self._strays.add(request)
        for model in self._scheduler_epochs:
            self._schedulers.cancel_soon(model, request)

    @handles
    def hand_back(self, msg: HandBack, ctx: Context) -> None:
        for request, attempt, error in zip(msg.requests, msg.attempts, msg.errors, strict=True):
            opened = self._open.get(request)
            if opened is None or opened.request.attempt != attempt:
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
                if opened.is_admitted and opened.request.model == model:
                    self._resume(opened, "the scheduler is new")

    def _resume(self, opened: OpenStream, why: str) -> None:
        request = opened.stream.resume(self._clock())
        if request is None:
            opened.wake()
            return
        self.resumed[why] += 1
        seen = len(request.generated) // 4
        self._traces.happened(
            request.id,
            "failover",
            {"headgate.attempt": request.attempt, "headgate.output_tokens": seen, "headgate.why": why},
        )
        ids = log_ids(request.traceparent)
        self._log.info("resumed", request_id=request.id, attempt=request.attempt, tokens=seen, why=why, **ids)
        self.spawn(self._submit(opened, request))

    async def _submit(self, opened: OpenStream, request: Request) -> None:
        def is_wanted() -> bool:
            return not (opened.stream.over or opened.is_closed or opened.request.attempt != request.attempt)

        try:
            await self._schedulers.submit(request, is_wanted=is_wanted)
        except GenerationFailed as error:
            opened.fail(str(error))

    async def _ask_about_silent(self) -> None:
        now = self._clock()
        silent: dict[str, list[OpenStream]] = {}
        for opened in self._open.values():
            if opened.is_admitted and not opened.stream.over and now - opened.stream.heard > _SILENT_S:
                silent.setdefault(opened.request.model, []).append(opened)
        for model, streams in silent.items():
            await self._ask_where(model, streams)

    async def _ask_where(self, model: str, streams: list[OpenStream]) -> None:
        had = [(opened.request.attempt, len(opened.stream.tokens)) for opened in streams]
        found = await self._schedulers.where(model, [opened.request.id for opened in streams])
        if found is None:
            return  # asked again soon; or its successor makes itself known
        for opened, asked, live, generated in zip(streams, had, found.attempts, found.generated, strict=True):
            if opened.stream.over or (opened.request.attempt, len(opened.stream.tokens)) != asked:
                continue
            attempt, tokens = asked
            if live < attempt or generated > tokens:
                self._resume(opened, "unknown to the scheduler" if live < attempt else "tokens were lost")
            else:
                opened.stream.heard = self._clock()  # it is only slow

    # --- traces -------------------------------------------------------------------------------------------------------

    @handles
    def keep(self, msg: Keep, ctx: Context) -> None:
        """A scheduler preempted them."""
        self._traces.keep(msg.requests)

    async def _ask_for_spans(self) -> None:
        requests = self._traces.take_to_ask()
        if requests and self.node.transport.is_connected:
            await self.node.publish(self.role, Keep(requests=requests))

    # --- the end ------------------------------------------------------------------------------------------------------

    async def _finish(self, opened: OpenStream, finish: Finish) -> None:
        await asyncio.shield(self._ending(self._end(opened, finish)))

    async def _end(self, opened: OpenStream, finish: Finish) -> None:
        """Off the device, settled with admission and in the usage stream."""
        stream, request = opened.stream, opened.request
        output = len(stream.tokens)
        if not stream.over:
            stream.finish = finish
            opened.wake()  # where a drain ran out of time its reader is still there, and holds up the process
            output = max(output, await self._schedulers.cancel(request.model, request.id) or 0)
        self._forget(request.id)
        ttft_kept, tpot_kept = (None, None) if finish == Finish.cancelled else opened.kept()
        settle = Settle(
            request=request.id,
            tenant=request.tenant,
            prompt_tokens=opened.prompt_tokens,
            output_tokens=output,
            ttft_s=stream.ttft_s,
            tpot_s=stream.tpot_s,
            ttft_kept=ttft_kept,
            tpot_kept=tpot_kept,
            is_whole=finish in (Finish.stop, Finish.length),
        )
        self.node.tell_soon("admission.any", settle)
        await self._usage.settled(request, output_tokens=output, cached_tokens=opened.cached_tokens, finish=finish)

    async def _withdraw(self, request: Request) -> None:
        """It was never admitted, as far as we know: make sure that nothing of it stays anywhere."""
        self._admission.withdraw(request.id)
        await self._schedulers.cancel(request.model, request.id)
        self._forget(request.id)

    def _forget(self, request_id: str) -> None:
        self._open.pop(request_id, None)
        if not self._open:
            self._all_over.set()

    def _report_asked(self, msg: ReportLive, ctx: Context) -> None:
        self.spawn(self._report_live())

    async def _report_live(self) -> None:
        """For admission, which may have restarted, or missed the end of one."""
        requests = [opened.request for opened in self._open.values() if opened.is_admitted]
        live = Live(
            gateway=self.node.instance,
            requests=[request.id for request in requests],
            tenants=[request.tenant for request in requests],
            tokens=[len(request.prompt) // 4 + request.max_tokens for request in requests],
        )
        await self.node.publish(self.role, live)
