"""The ledger actor: folds the usage and audit streams into SQLite and answers questions about them.

A record is acknowledged to JetStream only after the transaction that holds it is committed, and folding is
idempotent (the request
id is the key, the first settlement counts), so kill -9 at any point neither loses nor doubles usage.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import structlog

from actors.ledger_store import LedgerStore
from actors.messages import (
    AuditQuery,
    AuditRows,
    UsageQuery,
    UsageRows,
)
from actors.runtime import Actor, Context, Node, handles, heartbeat
from actors.usage import (
    AUDIT_STREAM,
    AUDIT_SUBJECT,
    OPENED_SUBJECT,
    SETTLED_SUBJECT,
    USAGE_STREAM,
    UsageRecord,
    decode_usage,
)

__all__ = ["Ledger"]


class Ledger(Actor):
    """Owns `path`, an SQLite file. Queries and folding run in a thread: a slow disk does not stop the heartbeat."""

    role = "ledger"
    mailbox = 256

    def __init__(self, path: Path) -> None:
        self._store = LedgerStore(path)
        self._lock = asyncio.Lock()
        self._log = structlog.get_logger()

    async def on_start(self, node: Node) -> None:
        await node.transport.ensure_stream(USAGE_STREAM, [OPENED_SUBJECT, SETTLED_SUBJECT])
        await node.transport.ensure_stream(AUDIT_STREAM, [AUDIT_SUBJECT])
        heartbeat(self, info=lambda: {"pid": os.getpid(), "state": "ready"})
        self.spawn(self._fold(USAGE_STREAM))
        self.spawn(self._fold(AUDIT_STREAM))

    async def on_stop(self) -> None:
        async with self._lock:
            self._store.close()

    async def _fold(self, stream: str) -> None:
        """Consume for ever; one transaction a batch."""
        async for batch in self.node.transport.consume(stream, self.role):
            payloads = [entry.payload for entry in batch]
            async with self._lock:
                if stream == USAGE_STREAM:
                    await asyncio.to_thread(self._store.fold_usage, self._readable(payloads))
                else:
                    await asyncio.to_thread(self._store.fold_audit, [(e.sequence, e.payload.decode()) for e in batch])
            for entry in batch:
                await entry.ack()

    def _readable(self, payloads: list[bytes]) -> list[UsageRecord]:
        """A record that cannot be read is logged and left out: it must not stop those behind it."""
        records = []
        for payload in payloads:
            try:
                records.append(decode_usage(payload))
            except msgspec.DecodeError as error:
                self._log.error("unreadable usage record", error=str(error), payload=payload.hex())
        return records

    @handles(concurrent=True)
    async def usage(self, msg: UsageQuery, ctx: Context) -> UsageRows:
        async with self._lock:
            return UsageRows(rows=await asyncio.to_thread(self._store.usage, msg))

    @handles(concurrent=True)
    async def audit(self, msg: AuditQuery, ctx: Context) -> AuditRows:
        async with self._lock:
            return AuditRows(rows=await asyncio.to_thread(self._store.audit, msg.limit))
