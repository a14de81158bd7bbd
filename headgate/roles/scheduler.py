"""The scheduler's process: one model, all its workers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from actors.addresses import instance_of
from actors.messages import UsageSettled
from actors.runtime import ActorError
from actors.scheduler import SchedulerActor
from actors.scheduler_metrics import SchedulerState
from actors.step_metrics import StepMetrics
from actors.usage import SETTLED_SUBJECT, encode_usage
from headgate.process import RoleContext
from observability.metrics import CacheMetrics, SchedulerMetrics

__all__ = ["scheduler"]


@asynccontextmanager
async def scheduler(context: RoleContext) -> AsyncIterator[SchedulerActor]:
    settings = context.settings
    policies = settings.policies

    async def settle(record: UsageSettled) -> None:
        """Until it is stored: nobody else can settle for a gateway that died.

        The id is not that of the gateway's own record: if it lives after all, its count must reach the ledger too.
        """
        payload = encode_usage(record)
        while True:
            try:
                await context.node.transport.append(SETTLED_SUBJECT, payload, message_id=f"{record.request}:orphan")
                return
            except ActorError:
                await asyncio.sleep(0.5)

    steps = StepMetrics(settings.name)
    actor = SchedulerActor(
        model=settings.name,
        config=policies.scheduler,
        placement=policies.placement,
        metrics=SchedulerMetrics(context.metrics),
        blocks=CacheMetrics(context.metrics),
        tracing=context.tracing,
        settle=settle,
        holder=instance_of(settings.instance),
        observers=(steps,),
    )
    context.metrics.add(steps)
    context.metrics.add(SchedulerState(actor, model=settings.name, clock=time.monotonic))
    yield actor
