"""The ledger actor: folds the usage and audit streams into a database and answers questions about them.

A record is acknowledged to JetStream only after the transaction that holds it is committed, and folding is idempotent
(the request id is the key, the settlement of most outputs counts), so kill -9 at any point, of the ledger or of its
database, neither loses nor doubles usage. While the database is away a batch is tried again until it is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import msgspec
import structlog

from actors.ledger_store import LedgerAway, LedgerStore
from actors.messages import (
    AuditQuery,
    AuditRows,
    UsageQuery,
    UsageRows,
)
from actors.runtime import Actor, Context, Failed, Node, StoreUnavailable, handles, heartbeat
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
#: So often it is looked whether the database is there, and at least so often a batch is tried again while it is not.
_PING_S = 2.0
_AGAIN_AT_MOST_S = 2.0
#: So often it is asked how much of the streams is not folded yet.
_LOOK_S = 2.0


class Ledger(Actor):
    """Owns a store.

    Folding and queries run one after the other in a thread of their own: a slow disk does not stop the heartbeat. Tests
    in virtual time give an `executor` that runs them on the spot.
    """

    role = "ledger"
    mailbox = 256

    def __init__(self, store: LedgerStore, *, metrics: LedgerMetrics, executor: Executor | None = None) -> None:
        self._metrics = metrics
        self._store = store
        self._away = ""
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._log = structlog.get_logger()

    async def on_start(self, node: Node) -> None:
        heartbeat(self, info=lambda: {"pid": os.getpid(), "state": "starting" if self._away else "ready"})
        self.every(_PING_S, self._ping)
        self.every(_LOOK_S, self._look)
        self.spawn(self._fold(USAGE_STREAM))
        self.spawn(self._fold(AUDIT_STREAM))

    async def on_stop(self) -> None:
        await self._do(self._store.close)
        self._executor.shutdown(wait=False)

    async def _do(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def not_ready(self) -> list[str]:
        """Why usage cannot be kept now; empty when it can."""
        return [self._away] if self._away else []

    async def _ping(self) -> None:
        with contextlib.suppress(LedgerAway):
            await self._try(self._store.ping)

    async def _try(self, work: Callable[[], T]) -> T:
        """Do it, and note whether the database is there. :raises LedgerAway: it is not."""
        try:
            result = await self._do(work)
        except LedgerAway as error:
            if not self._away:
                self._log.error("the ledger's database is away", error=str(error))
            self._away = str(error)
            raise
        if self._away:
            self._log.info("the ledger's database is back")
        self._away = ""
        return result

    async def _kept(self, work: Callable[[], T]) -> T:
        """Do it, however long the database is away."""
        delay_s = 0.1
        while True:
            try:
                return await self._try(work)
            except LedgerAway:
                await asyncio.sleep(delay_s)
                delay_s = min(_AGAIN_AT_MOST_S, 2 * delay_s)

    async def _look(self) -> None:
        """How far behind the streams the ledger is."""
        for stream in (USAGE_STREAM, AUDIT_STREAM):
            with contextlib.suppress(StoreUnavailable):
                self._metrics.lag(stream, await self.node.transport.backlog(stream, self.role))

    async def _fold(self, stream: str) -> None:
        """Consume for ever; one transaction a batch."""
        async for batch in self.node.transport.consume(stream, self.role, ack_wait_s=_ACK_WAIT_S):
            began = time.perf_counter()
            if stream == USAGE_STREAM:
                await self._kept(partial(self._store.fold_usage, self._readable([entry.payload for entry in batch])))
            else:
                await self._kept(partial(self._store.fold_audit, [(e.sequence, e.payload.decode()) for e in batch]))
            self._metrics.folded(stream, records=len(batch), seconds=time.perf_counter() - began)
            for entry in batch:
                await entry.ack()
            if stream == USAGE_STREAM:
                self._metrics.unsettled(await self._kept(self._store.unsettled))

    def _readable(self, payloads: list[bytes]) -> list[UsageRecord]:
        """A record that cannot be read is logged and left out: it must not stop those behind it."""
        records = []
        for payload in payloads:
            try:
                records.append(decode_usage(payload))
            except msgspec.DecodeError as error:
                self._metrics.unreadable()
                self._log.error("unreadable usage record", error=str(error), payload=payload.hex())
        return records

    @handles(concurrent=True)
    async def usage(self, msg: UsageQuery, ctx: Context) -> UsageRows:
        try:
            return UsageRows(rows=await self._try(partial(self._store.usage, msg)))
        except ValueError as error:
            raise Failed("invalid-query", str(error)) from error
        except LedgerAway as error:
            raise Failed("ledger-away", str(error)) from error

    @handles(concurrent=True)
    async def audit(self, msg: AuditQuery, ctx: Context) -> AuditRows:
        try:
            return AuditRows(rows=await self._try(partial(self._store.audit, msg.limit)))
        except LedgerAway as error:
            raise Failed("ledger-away", str(error)) from error
