"""What must be in JetStream before a stack runs: the buckets and the streams."""

from __future__ import annotations

import asyncio
import os

import structlog

from actors.runtime import ActorError, NatsTransport
from actors.runtime.errors import Forbidden
from headgate.nats.address import open_transport

__all__ = ["BUCKETS", "STREAMS", "provision"]

#: Key-value buckets and what they hold.
BUCKETS = ("leases", "tenants", "keys")
#: Streams: their subjects, and for how long records are kept (0: for ever). The ledger folds usage within seconds; what
#: it has folded is kept so that a lost database can be rebuilt.
STREAMS = {"usage": (["hg.usage.>"], 60 * 86400.0), "audit": (["hg.audit.>"], 0.0)}

#: Between attempts on a cluster that has no leader yet.
_AGAIN_S = 0.5


async def provision(url: str, *, password: str | None = None, replicas: int = 1, timeout_s: float = 0.0) -> None:
    """Create the buckets and streams that are missing, as `admin` (or anybody, on a server without users).

    `replicas`: how many servers keep each; those that exist with fewer get more. `timeout_s`: so long it is tried
    again, since a cluster that has just started has no leader yet.

    :raises ActorError: it did not work.
    """
    transport = open_transport(url, password=password, replicas=replicas)
    await transport.open(role="admin", instance=f"provision-{os.getpid()}")
    until = asyncio.get_running_loop().time() + timeout_s
    try:
        while True:
            try:
                return await _provision(transport, replicas)
            except Forbidden:
                raise
            except ActorError as error:
                if asyncio.get_running_loop().time() >= until:
                    raise
                structlog.get_logger().info("JetStream is not ready", error=str(error))
                await asyncio.sleep(_AGAIN_S)
    finally:
        await transport.close()


async def _provision(transport: NatsTransport, replicas: int) -> None:
    for bucket in BUCKETS:
        await transport.bucket(bucket)
    for stream, (subjects, max_age_s) in STREAMS.items():
        await transport.ensure_stream(stream, subjects, max_age_s=max_age_s)
    if replicas > 1:
        for name in (*(f"KV_{bucket}" for bucket in BUCKETS), *STREAMS):
            await transport.replicate(name, replicas)
