"""The admission actor's process, with its live copy of the tenants."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import structlog

from actors.admission import AdmissionActor
from headgate.process import RoleContext
from observability.metrics import DecisionMetrics
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
        yield AdmissionActor(
            tenants=tenants,
            metrics=DecisionMetrics(context.metrics),
            tracing=context.tracing,
            policy=context.settings.policies.admission,
        )
    finally:
        await watch.close()
