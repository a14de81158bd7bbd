"""The ledger actor: folds the usage and audit streams into SQLite and answers questions about them.

A record is acknowledged to JetStream only after the transaction that holds it is committed, and folding is idempotent
(the request id is the key, the settlement of most outputs counts), so kill -9 at any point neither loses nor doubles
usage.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from actors.ledger_store import LedgerStore
from actors.messages import (
    AuditQuery,
    AuditRows,
    UsageQuery,
    UsageRows,
)
from actors.runtime import Actor, Context, Failed, Node, handles, heartbeat
from actors.usage import (
    AUDIT_STREAM,
    USAGE_STREAM,
    UsageRecord,
    decode_usage,
)
from observability.metrics import LedgerMetrics

__all__ = ["Ledger"]

T = TypeVar("T")

#: What a ledger had taken when it was killed comes to its successor so much later.
_ACK_WAIT_S = 5.0


class Ledger(Actor):
    """Owns `path`, an SQLite file.

    Folding and queries run one after the other in a thread of their own: a slow disk does not stop the heartbeat. Tests
    in virtual time give an `executor` that runs them on the spot.
    """

    role = "ledger"
    mailbox = 256

    def __init__(self, path: Path, *, metrics: LedgerMetrics, executor: Executor | None = None) -> None:
        self._metrics = metrics
        self._store = LedgerStore(path)
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._log = structlog.get_logger()

    async def on_start(self, node: Node) -> None:
        heartbeat(self, info=lambda: {"pid": os.getpid(), "state": "ready"})
        self.spawn(self._fold(USAGE_STREAM))
        self.spawn(self._fold(AUDIT_STREAM))

    async def on_stop(self) -> None:
        await self._do(self._store.close)
        self._executor.shutdown(wait=False)

    async def _do(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def _fold(self, stream: str) -> None:
        """Consume for ever; one transaction a batch."""
        async for batch in self.node.transport.consume(stream, self.role, ack_wait_s=_ACK_WAIT_S):
            if stream == USAGE_STREAM:
                await self._do(partial(self._store.fold_usage, self._readable([entry.payload for entry in batch])))
            else:
                await self._do(partial(self._store.fold_audit, [(e.sequence, e.payload.decode()) for e in batch]))
            for entry in batch:
                await entry.ack()
            if stream == USAGE_STREAM:
                self._metrics.unsettled(await self._do(self._store.unsettled))

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
        try:
            return UsageRows(rows=await self._do(partial(self._store.usage, msg)))
        except ValueError as error:
            raise Failed("invalid-query", str(error)) from error

    @handles(concurrent=True)
    async def audit(self, msg: AuditQuery, ctx: Context) -> AuditRows:
        return AuditRows(rows=await self._do(partial(self._store.audit, msg.limit)))
