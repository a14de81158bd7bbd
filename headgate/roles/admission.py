"""The admission actor's process, with its live copy of the tenants."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import structlog

from actors.admission import AdmissionActor
from actors.admission_metrics import AdmissionState
from headgate.process import RoleContext
from observability.metrics import DecisionMetrics
from policies.admission import Reason
from policies.vocabulary import Tenant

__all__ = ["admission"]

_BUCKET = "tenants"


@asynccontextmanager
async def admission(context: RoleContext) -> AsyncIterator[AdmissionActor]:
    tenants: dict[str, Tenant] = {}
    log = structlog.get_logger()

    def changed(name: str, value: bytes | None) -> None:
        if value is None:
            tenants.pop(name, None)
            return
        try:
            tenants[name] = msgspec.json.decode(value, type=Tenant)
        except msgspec.MsgspecError as error:
            log.error("a tenant cannot be read and keeps its old entry", tenant=name, error=str(error))

    bucket = await context.node.transport.bucket(_BUCKET)
    watch = await bucket.watch(changed)
    try:
        actor = AdmissionActor(
            tenants=tenants,
            metrics=DecisionMetrics(context.metrics, reasons=tuple(Reason)),
            tracing=context.tracing,
            policy=context.settings.policies.admission,
        )
        context.metrics.add(AdmissionState(actor, tenants=tenants, labels=context.metrics.tenants))
        yield actor
    finally:
        await watch.close()
