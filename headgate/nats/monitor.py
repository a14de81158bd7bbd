"""Asks the HTTP monitors of NATS servers for their figures, now and then."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import msgspec

from observability.metrics.nats_server import NatsServerMetrics, Varz

__all__ = ["monitored"]

_EVERY_S = 5.0
_TIMEOUT_S = 2.0


@asynccontextmanager
async def monitored(
    urls: Sequence[str], metrics: NatsServerMetrics, *, every_s: float = _EVERY_S
) -> AsyncIterator[None]:
    """Tell `metrics` of every server for as long as the context is open. `urls`: of monitors, as http://nats:8222."""
    asking = [asyncio.create_task(_follow(url, metrics, every_s), name="nats-monitor") for url in urls]
    try:
        yield
    finally:
        for task in asking:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def _follow(url: str, metrics: NatsServerMetrics, every_s: float) -> None:
    name = urlsplit(url).netloc  # until it says its own
    while True:
        varz = await asyncio.to_thread(_ask, f"{url.rstrip('/')}/varz")
        if varz is not None and varz.server_name != varz.server_id:
            name = varz.server_name  # one that was given, not drawn at its start
        metrics.told(name, varz)
        await asyncio.sleep(every_s)


def _ask(url: str) -> Varz | None:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            return msgspec.json.decode(answer.read(), type=Varz)
    except (OSError, msgspec.MsgspecError):
        return None
