"""The ledger's process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from actors.ledger import Ledger
from headgate.process import RoleContext
from observability.metrics import LedgerMetrics

__all__ = ["ledger"]


@asynccontextmanager
async def ledger(context: RoleContext) -> AsyncIterator[Ledger]:
    """Folds into `<data>/usage.db`."""
    yield Ledger(context.settings.data_dir / "usage.db", metrics=LedgerMetrics(context.metrics))
