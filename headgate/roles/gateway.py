"""A gateway's process: the actor that owns streams, and two HTTP servers, the public one and the admin port."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn

from actors.messages import AuditQuery, AuditRows, Decision, UsageQuery, UsageRows
from actors.usage import AUDIT_SUBJECT
from gateway.admin import AdminSources, admin_app
from gateway.app import create_app
from gateway.directory import KEYS_BUCKET, TENANTS_BUCKET, Directory
from gateway.live.hub import LiveHub
from gateway.live.spans import span_source
from gateway.observing import EdgeHooks
from gateway.secrets import load_secrets
from gateway.server import server_config
from gateway.settings import EdgeSettings
from gateway.streams import GatewayActor
from gateway.tenancy import Tenancy
from gateway.text.tokenizer import load_model_text
from gateway.usage_log import UsageLog
from headgate.process import DRAIN_S, RoleContext
from observability.metrics import EdgeMetrics
from policies.vocabulary import Request

__all__ = ["gateway"]


@asynccontextmanager
async def gateway(context: RoleContext) -> AsyncIterator[GatewayActor]:
    settings, node = context.settings, context.node
    secrets = load_secrets(settings.data_dir)
    transport = node.transport
    tenants, keys = await transport.bucket(TENANTS_BUCKET), await transport.bucket(KEYS_BUCKET)
    directory = Directory(tenants, keys, pepper=secrets.pepper, salt_secret=secrets.cache_salt)
    await directory.start()
    model = load_model_text(settings.model, name=settings.name)

    async def store(subject: str, payload: bytes, message_id: str) -> None:
        await transport.append(subject, payload, message_id=message_id)

    async def audit(record: bytes, record_id: str) -> None:
        await store(AUDIT_SUBJECT, record, record_id)

    actor = GatewayActor(models={settings.name: model}, usage=UsageLog(store, gateway=context.instance))
    edge = EdgeSettings(gateway=context.instance)
    public = create_app(
        actor,
        models={settings.name: model},
        authenticate=directory.authenticate,
        settings=edge,
        hooks=EdgeHooks(EdgeMetrics(context.metrics), context.tracing),
        metrics=lambda: actor.view.exposition(context.metrics.registry),
    )

    async def usage(query: UsageQuery) -> UsageRows:
        return await node.ask("ledger.any", query, want=UsageRows, timeout_s=5.0)

    async def audit_rows(query: AuditQuery) -> AuditRows:
        return await node.ask("ledger.any", query, want=AuditRows, timeout_s=5.0)

    async def explain(request: Request) -> Decision:
        return await actor.explain(request)

    async def processes() -> list[dict[str, object]]:
        return actor.view.processes()

    hub = LiveHub(node, view=actor.view, tenants=directory.tenants, models={settings.name: model})
    admin = admin_app(
        admin_key=secrets.admin_key,
        tenancy=Tenancy(tenants, keys, directory, pepper=secrets.pepper, audit=audit),
        directory=directory,
        sources=AdminSources(
            usage=usage,
            audit=audit_rows,
            explain=explain,
            processes=processes,
            workers=actor.view.workers,
            live=hub,
            spans=span_source(settings.data_dir),
        ),
        gateway=context.instance,
    )
    async with _http(
        _Server(
            server_config(
                public, host=settings.host, port=settings.port, settings=edge, timeout_graceful_shutdown=int(DRAIN_S)
            )
        ),
        _Server(
            server_config(
                admin,
                host=settings.host,
                port=settings.admin_port,
                settings=edge,
                timeout_graceful_shutdown=int(DRAIN_S),
            )
        ),
    ):
        try:
            yield actor
        finally:
            hub.close()
            await directory.stop()


class _Server(uvicorn.Server):
    """Leaves the signals to the frame of the process."""

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()


@asynccontextmanager
async def _http(*servers: _Server) -> AsyncIterator[None]:
    """Serve for as long as the context is open; then let what is under way end."""
    tasks = [asyncio.create_task(server.serve(), name="http") for server in servers]
    try:
        while not all(server.started for server in servers):
            for task in tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.01)
        yield
    finally:
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*tasks, return_exceptions=True)
