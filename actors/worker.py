"""The worker actor: owns one engine, runs steps in order, reports each to the gateways and to the scheduler.

It decides nothing. A step comes once, in order, from the scheduler that attached last; anything else is answered so
that the sender can repair it: a step that is done with the same result again, a step from the future with the number
that is wanted.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from math import inf

import structlog

from actors.device_thread import DeviceThread
from actors.messages import Attach, Attached, Keep, RunStep, Stepped, StepRefused, Tokens
from actors.runtime import LEASE_TTL_S, Actor, Context, Lease, Node, handles, heartbeat
from actors.worker_spans import RowTrace, WorkerSpans
from gpu_worker.engine import Engine, SampledRows, StepResult
from observability.metrics import WorkerMetrics
from observability.tracing import Tracing
from policies.vocabulary import Finish, Step

__all__ = ["Worker"]

#: A draining worker that gets no step for so long has nothing left to do.
_IDLE_S = 0.5

#: Results kept for a scheduler that missed one. Two steps are in flight; twice that covers a resend that crosses a
#: result.
_KEPT_RESULTS = 4


class Worker(Actor):
    """One device. `on_failure` is called with a device error; the process is expected to end, its requests go
    elsewhere."""

    role = "worker"
    mailbox = 64

    def __init__(
        self,
        engine: Engine,
        *,
        tracing: Tracing,
        metrics: WorkerMetrics,
        on_failure: Callable[[BaseException], None],
        device: type[DeviceThread] = DeviceThread,
    ) -> None:
        self._engine = engine
        self._tracing = tracing
        self._spans = WorkerSpans(tracing, model=engine.spec.model)
        self._metrics = metrics
        self._on_failure = on_failure
        self._make_device = device
        self._device: DeviceThread | None = None
        self._log = structlog.get_logger()
        self._session = 0
        self._next = 1  # number of the step wanted
        self._reported = 0  # of the last step that is done
        self._stepped_s = -inf  # when the last one came
        self._results: OrderedDict[int, Stepped] = OrderedDict()
        self._rows: dict[int, RowTrace] = {}
        self._changes: dict[int, tuple[Step, int]] = {}  # steps that are to change them, and when they came
        self._scheduler = ""

    async def on_start(self, node: Node) -> None:
        await self.hold(Lease(node, node.name, node.name, ttl_s=LEASE_TTL_S))
        self._device = self._make_device(self._engine, on_result=self._report, on_failure=self._on_failure)
        await self.listen("gateway", Keep, self._spans.asked)
        heartbeat(self, info=self._info)

    def _info(self) -> dict[str, object]:
        state = "draining" if self.node.is_draining else "ready"
        return {"pid": os.getpid(), "state": state, "model": self._engine.spec.model}

    async def on_drain(self) -> None:
        """The scheduler hears of it and places nothing new here; what runs goes on, at most until the drain is over."""
        while True:
            idle_s = self.node.clock() - self._stepped_s if self._reported == self._next - 1 else 0.0
            if idle_s >= _IDLE_S:
                return
            await asyncio.sleep(_IDLE_S - idle_s)

    async def on_stop(self) -> None:
        if self._device is not None:
            await self._device.close()

    @handles
    async def attach(self, msg: Attach, ctx: Context) -> Attached:
        """Forget everything and serve the sender. The session number is new, so that steps meant for an older one
        are dropped."""
        assert self._device is not None
        self._session = 0  # results of what is still queued belong to nobody
        await self._device.reset()
        self._session = time.time_ns() // 1_000  # grows across restarts of this process too
        self._next = 1
        self._reported = 0
        self._scheduler = ctx.sender
        self._results.clear()
        for trace in self._rows.values():
            self._spans.left(trace, Finish.none, worker=self.node.instance)
        self._rows.clear()
        self._changes.clear()
        self._log.info("attached", scheduler=ctx.sender, session=self._session)
        return Attached(spec=self._engine.spec, session=self._session)

    @handles
    def run_step(self, msg: RunStep, ctx: Context) -> None:
        if msg.session != self._session:
            return
        number = msg.step.number
        if number == self._next:
            self._next += 1
            self._stepped_s = self.node.clock()
            if msg.step.drop or msg.step.new:
                self._changes[number] = msg.step, self._tracing.now_ns()
            assert self._device is not None
            self._device.submit(msg.step)
        elif number > self._next:
            self.node.tell_soon(self._scheduler, StepRefused(session=self._session, wanted=self._next))
        elif number in self._results:
            self.node.tell_soon(self._scheduler, self._results[number])

    def _report(self, result: StepResult) -> None:
        """Tell the gateways their tokens, then the scheduler: a stream never waits for the scheduler."""
        if not self._session:
            return
        self._reported = result.done.number
        self._metrics.step(result.done.duration_s)
        self._change_rows(result.done.number)
        for gateway, tokens in self._by_gateway(result.done.number, result.rows).items():
            self.node.tell_soon(f"gateway.{gateway}", tokens)
        stepped = Stepped(session=self._session, done=result.done)
        self._results[result.done.number] = stepped
        if len(self._results) > _KEPT_RESULTS:
            self._results.popitem(last=False)
        self.node.tell_soon(self._scheduler, stepped)
        for slot, finish in zip(result.done.slots, result.done.finished, strict=True):
            trace = self._rows.get(slot)
            if trace is not None:
                trace.outputs += 1
                if finish != Finish.none:
                    self._spans.left(self._rows.pop(slot), Finish(finish), worker=self.node.instance)

    def _change_rows(self, number: int) -> None:
        """Not when the step comes: results of those before it, with the rows of then, are still to come."""
        if number in self._changes:
            step, came_ns = self._changes.pop(number)
            for slot in step.drop:
                if slot in self._rows:
                    self._spans.left(self._rows.pop(slot), Finish.none, worker=self.node.instance)
            for row in step.new:
                self._rows[row.slot] = RowTrace(row, came_ns)

    def _by_gateway(self, step: int, rows: SampledRows) -> dict[str, Tokens]:
        """One message per gateway that has a row in this step."""
        split: dict[str, Tokens] = {}
        for i, gateway in enumerate(rows.gateways):
            tokens = split.get(gateway)
            if tokens is None:
                tokens = split[gateway] = Tokens(
                    step=step, requests=[], attempts=[], indices=[], tokens=[], finished=[], logprobs={}, cached={}
                )
            logprobs = rows.logprobs[i]
            if logprobs is not None:
                tokens.logprobs[len(tokens.requests)] = logprobs
            entered = self._rows.get(rows.slots[i])
            if entered is not None and not entered.outputs and entered.row.computed:
                tokens.cached[len(tokens.requests)] = min(entered.row.computed, entered.row.prompt_tokens)
            tokens.requests.append(rows.requests[i])
            tokens.attempts.append(rows.attempts[i])
            tokens.indices.append(rows.indices[i])
            tokens.tokens.append(rows.tokens[i])
            tokens.finished.append(rows.finished[i])
        return split
