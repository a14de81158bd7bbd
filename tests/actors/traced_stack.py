"""A virtual stack whose processes have tracing of their own, and requests served as their HTTP handler would."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from virtual_stack import VirtualStack, virtual_stack

from actors.runtime.simulation import run
from gateway.generation import GenerationFailed, Refused
from gateway.observing import EdgeHooks
from observability.metrics import EdgeMetrics, Metrics
from observability.span_store import Span, find_trace, trace_spans
from observability.tracing import Tracing, setup_tracing
from policies.vocabulary import Finish, Request

__all__ = ["TracedStack", "traced"]

SETTLE_S = 0.5


class TracedStack:
    """`stack` with a tracing of its own for each role, all to one store."""

    def __init__(self, directory: Path, *, ratio: float, steps_every: int) -> None:
        clock = asyncio.get_running_loop().time
        self.directory = directory
        self.by_role: dict[str, Tracing] = {}
        for role in ("gateway", "admission", "scheduler", "worker"):
            self.by_role[role] = setup_tracing(
                role, f"{role}-0", data_dir=directory, sample_ratio=ratio, now_ns=lambda: int((clock() + 1e6) * 1e9)
            )
        if steps_every:
            self.by_role["scheduler"].steps_every = steps_every
        self.stack: VirtualStack
        self.hooks: EdgeHooks

    def start(self, stack: VirtualStack) -> None:
        self.stack = stack
        self.hooks = EdgeHooks(EdgeMetrics(Metrics("gateway", "g0")), self.by_role["gateway"], stack.traces)

    async def serve(self, wanted: Request, *, leave_after_s: float | None = None) -> str:
        """Serve one request to its end. Returns its outcome."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        observer = self.hooks.start("POST /v1/chat/completions", request_id=f"req-{wanted.id}", traceparent=None)
        wanted = msgspec.structs.replace(wanted, traceparent=observer.traceparent)
        observer.stage("parse", 0.0001)
        observer.stage("tokenise", 0.0002)
        observer.stage("validate", 0.0001)
        observer.asked(wanted, tenant=wanted.tenant, key="k", stream=True)
        status, outcome = 200, "ok"
        try:
            async with asyncio.timeout(leave_after_s):
                await self._generate(wanted, observer, began)
        except Refused:
            status, outcome = 429, "refused"
        except TimeoutError:
            outcome = "cancelled"
        except GenerationFailed:
            outcome = "error"
        observer.stage("encode", 0.0001)
        observer.finished(status=status, outcome=outcome, seconds=loop.time() - began)
        return outcome

    async def _generate(self, wanted: Request, observer: Any, began: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            generation = await self.stack.gateway.admit(wanted, key="k", patience_s=60.0)
        except Refused as refused:
            observer.decided(wanted, refused.decision, loop.time() - began)
            raise
        observer.decided(wanted, generation.decision, loop.time() - began)
        first: float | None = None
        outputs, finish = 0, Finish.cancelled
        try:
            async for delivery in generation.deliveries():
                if first is None:
                    first = loop.time() - began
                    observer.first_token(generation.request, first)
                outputs += len(delivery.tokens)
                if delivery.finish is not Finish.none:
                    finish = delivery.finish
        except GenerationFailed:
            finish = Finish.error
            raise
        finally:
            tpot_s = (loop.time() - began - first) / (outputs - 1) if first is not None and outputs > 1 else None
            observer.generated(
                generation.request, output_tokens=outputs, cached_tokens=0, tpot_s=tpot_s, finish=finish.name
            )
            await generation.close(finish)

    def spans(self, request: str) -> list[Span]:
        """All that was recorded of a request, by start."""
        for tracing in self.by_role.values():
            tracing.flush()
        return find_trace(self.directory, request)

    def trace(self, trace_id: str) -> list[Span]:
        """All spans of a trace, such as that of a step."""
        return trace_spans(self.directory, trace_id)

    def close(self) -> None:
        for tracing in self.by_role.values():
            tracing.shutdown()


def traced(
    directory: Path,
    scenario: Callable[[TracedStack], Awaitable[None]],
    *,
    ratio: float = 0.0,
    steps_every: int = 0,
    **options: Any,
) -> TracedStack:
    """Run `scenario` on a stack in virtual time. Returns what it left, for `spans`."""

    async def main() -> TracedStack:
        traces = TracedStack(directory, ratio=ratio, steps_every=steps_every)
        async with virtual_stack(directory, tracing=traces.by_role.__getitem__, **options) as stack:
            traces.start(stack)
            await scenario(traces)
            await asyncio.sleep(SETTLE_S)  # what is told at the end is heard
        traces.close()
        return traces

    return run(main())
