"""The ledger's process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from actors.ledger import Ledger
from actors.ledger_sqlite import SqliteLedger
from actors.ledger_store import LedgerStore
from headgate.errors import HeadgateError
from headgate.nats.address import read_secret
from headgate.nats.monitor import monitored
from headgate.process import RoleContext
from headgate.settings import Settings
from observability.metrics import LedgerMetrics
from observability.metrics.nats_server import NatsServerMetrics

__all__ = ["ledger"]


@asynccontextmanager
async def ledger(context: RoleContext) -> AsyncIterator[Ledger]:
    """Folds into PostgreSQL where an address is given, else into `<data>/usage.db`."""
    actor = Ledger(_store(context.settings), metrics=LedgerMetrics(context.metrics))
    context.readiness.check(actor.not_ready)
    monitors = [url for url in context.settings.nats_monitor.split(",") if url]
    async with monitored(monitors, NatsServerMetrics(context.metrics)):
        yield actor


def _store(settings: Settings) -> LedgerStore:
    if not settings.ledger:
        return SqliteLedger(settings.data_dir / "usage.db")
    try:
        from actors.ledger_postgres import PostgresLedger  # its driver is an extra
    except ImportError as error:
        raise HeadgateError(
            f"--ledger needs the driver of PostgreSQL: pip install 'headgate[postgres]' ({error})"
        ) from error
    password = read_secret(settings.ledger_password_file, of="--ledger-password-file")
    return PostgresLedger(settings.ledger, password=password)
