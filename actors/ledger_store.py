"""What a ledger keeps its books in: the contract of the stores, and what they have in common."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Protocol

from actors.messages import UsageOpened, UsageQuery, UsageRow, UsageSettled

__all__ = ["LedgerAway", "LedgerStore", "columns_of", "opened_row", "settled_row"]


class LedgerAway(Exception):
    """The database cannot be reached, or does not do what is asked. Nothing of the batch was kept: try again."""


class LedgerStore(Protocol):
    """Not thread-safe: one caller at a time, from any thread. Every method may block.

    :raises LedgerAway: of every method but `close`.
    """

    def fold_usage(self, records: Iterable[UsageOpened | UsageSettled]) -> None:
        """Fold a batch in one transaction, which is on disk when this returns.

        Idempotent, and indifferent to the order of a request's records. The settlement of most outputs counts.
        """

    def fold_audit(self, records: Iterable[tuple[int, str]]) -> None:
        """Keep (stream sequence, JSON) pairs, in one transaction. Idempotent."""

    def usage(self, query: UsageQuery) -> list[UsageRow]:
        """Sums of settled usage in the grouping asked for, by tenant, day, key, request in the order of their bytes.

        :raises ValueError: the grouping is not offered.
        """

    def unsettled(self) -> int:
        """Requests written ahead and not settled yet."""

    def audit(self, limit: int) -> list[str]:
        """The latest records, newest first."""

    def ping(self) -> None:
        """Returns if the database answers."""

    def close(self) -> None:
        """Idempotent."""


_GROUPS = {
    "tenant": ("tenant", "''", "''", "''"),
    "day": ("tenant", "day", "''", "''"),
    "key": ("tenant", "''", "key", "''"),
    "request": ("tenant", "day", "key", "request"),
}


def columns_of(query: UsageQuery) -> tuple[str, str, str, str]:
    """SQL of the columns that a query groups by: tenant, day, key, request. :raises ValueError: it is not offered."""
    columns = _GROUPS.get(query.by)
    if columns is None:
        raise ValueError(f"by={query.by!r} is not offered; use one of {', '.join(_GROUPS)}")
    return columns


def opened_row(record: UsageOpened) -> tuple[object, ...]:
    """request, tenant, key, model, gateway, day (UTC), opened_unix_s, prompt_tokens, max_tokens."""
    day = datetime.fromtimestamp(record.opened_unix_s, UTC).date().isoformat()
    return (
        record.request,
        record.tenant,
        record.key,
        record.model,
        record.gateway,
        day,
        record.opened_unix_s,
        record.prompt_tokens,
        record.max_tokens,
    )


def settled_row(record: UsageSettled) -> tuple[object, ...]:
    """request, settled_unix_s, prompt_tokens, output_tokens, cached_tokens, finish, attempts."""
    return (
        record.request,
        record.settled_unix_s,
        record.prompt_tokens,
        record.output_tokens,
        record.cached_tokens,
        record.finish,
        record.attempts,
    )
