"""A gateway's process: the actor that owns streams, and two HTTP servers, the public one and the admin port."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from math import ceil

from actors.messages import AuditQuery, AuditRows, UsageQuery, UsageRows
from actors.usage import AUDIT_SUBJECT
from gateway.admin import AdminSources, admin_app
from gateway.app import create_app
from gateway.directory import KEYS_BUCKET, TENANTS_BUCKET, Directory
from gateway.errors import ModelTextError
from gateway.live.hub import LiveHub
from gateway.live.spans import span_source
from gateway.observing import EdgeHooks
from gateway.secrets import BadSecret, load_secrets
from gateway.server import server_config
from gateway.settings import EdgeSettings
from gateway.state_metrics import GatewayState
from gateway.streams import GatewayActor
from gateway.tenancy import Tenancy
from gateway.text.tokenizer import load_model_text
from gateway.traces import RequestTraces
from gateway.usage_log import UsageLog
from headgate.errors import HeadgateError
from headgate.http_server import serving
from headgate.process import RoleContext
from observability.metrics import EdgeMetrics

__all__ = ["gateway"]


@asynccontextmanager
async def gateway(context: RoleContext) -> AsyncIterator[GatewayActor]:
    settings, node, readiness = context.settings, context.node, context.readiness
    try:
        secrets = load_secrets(settings.data_dir)
        model = load_model_text(settings.model, name=settings.name)
    except (BadSecret, ModelTextError) as error:
        raise HeadgateError(str(error)) from error
    transport = node.transport
    tenants, keys = await transport.bucket(TENANTS_BUCKET), await transport.bucket(KEYS_BUCKET)
    directory = Directory(tenants, keys, pepper=secrets.pepper, salt_secret=secrets.cache_salt)
    await directory.start()

    async def store(subject: str, payload: bytes, message_id: str) -> None:
        await transport.append(subject, payload, message_id=message_id)

    async def audit(record: bytes, record_id: str) -> None:
        await store(AUDIT_SUBJECT, record, record_id)

    traces = RequestTraces()
    actor = GatewayActor(models={settings.name: model}, usage=UsageLog(store, gateway=context.instance), traces=traces)
    edge = EdgeSettings(gateway=context.instance)
    public = create_app(
        actor,
        models={settings.name: model},
        authenticate=directory.authenticate,
        settings=edge,
        hooks=EdgeHooks(EdgeMetrics(context.metrics), context.tracing, traces),
        metrics=_exposition(context, actor),
    )

    hub = LiveHub(node, view=actor.view, tenants=directory.tenants, models={settings.name: model})
    admin = admin_app(
        admin_key=secrets.admin_key,
        tenancy=Tenancy(tenants, keys, directory, pepper=secrets.pepper, audit=audit),
        directory=directory,
        sources=_sources(context, actor, hub),
        gateway=context.instance,
    )
    readiness.check(actor.not_ready)
    context.metrics.add(GatewayState(actor, tenants=directory.tenants, labels=context.metrics.tenants))
    drain_s = max(1, ceil(settings.drain_s))
    async with serving(
        server_config(public, host=settings.host, port=settings.port, settings=edge, timeout_graceful_shutdown=drain_s),
        server_config(
            admin, host=settings.host, port=settings.admin_port, settings=edge, timeout_graceful_shutdown=drain_s
        ),
    ):
        try:
            yield actor
        finally:
            hub.close()
            await directory.stop()


def _exposition(context: RoleContext, actor: GatewayActor) -> Callable[[str], tuple[bytes, str]]:
    """Where every process has an ops port, Prometheus asks each itself; else the gateway tells of all."""
    if context.settings.ops_port is not None:
        return context.metrics.render
    return lambda accept: actor.view.exposition(context.metrics.registry, accept)


def _sources(context: RoleContext, actor: GatewayActor, hub: LiveHub) -> AdminSources:
    """Who answers what the admin port is asked."""
    settings, node = context.settings, context.node

    async def usage(query: UsageQuery) -> UsageRows:
        return await node.ask("ledger.any", query, want=UsageRows, timeout_s=5.0)

    async def audit(query: AuditQuery) -> AuditRows:
        return await node.ask("ledger.any", query, want=AuditRows, timeout_s=5.0)

    async def processes() -> list[dict[str, object]]:
        return actor.view.processes()

    return AdminSources(
        usage=usage,
        audit=audit,
        explain=actor.explain,
        processes=processes,
        workers=actor.view.workers,
        live=hub,
        spans=span_source(settings.data_dir, jaeger_url=settings.jaeger_url),
    )
