"""The ops port of a role's process: is it alive, does it work, and its own metrics. For orchestrators and Prometheus.

`/health` is 200 for as long as the event loop runs; `/ready` is 200 when the process does its work, or stands by for
one that does, and otherwise 503 with the reasons; `/metrics` is what this very process measures.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from headgate.http_server import serving
from headgate.readiness import Report

__all__ = ["ops_app", "ops_port"]

#: From the Accept header to the body and content type of /metrics.
Render = Callable[[str], tuple[bytes, str]]


def ops_app(*, report: Callable[[], Report], metrics: Render) -> Starlette:
    """The application of an ops port."""

    async def health(http: Request) -> Response:
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def ready(http: Request) -> Response:
        found = report()
        return Response(
            msgspec.json.encode(found), status_code=200 if found.is_ready else 503, media_type="application/json"
        )

    async def expose(http: Request) -> Response:
        body, content_type = metrics(http.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    return Starlette(routes=[Route("/health", health), Route("/ready", ready), Route("/metrics", expose)])


@asynccontextmanager
async def ops_port(host: str, port: int, *, report: Callable[[], Report], metrics: Render) -> AsyncIterator[int]:
    """Serve it for as long as the context is open; gives the port.

    :raises HeadgateError: the address cannot be listened on.
    """
    config = uvicorn.Config(
        ops_app(report=report, metrics=metrics),
        host=host,
        port=port,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    async with serving(config) as (bound,):
        structlog.get_logger().info("ops port", host=host, port=bound)
        yield bound
