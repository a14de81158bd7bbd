"""Usage and audit in SQLite: the tables, the folding, the sums."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from actors.messages import UsageOpened, UsageQuery, UsageRow, UsageSettled

__all__ = ["LedgerStore"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS usage (
    request TEXT PRIMARY KEY,
    tenant TEXT NOT NULL DEFAULT '',
    key TEXT NOT NULL DEFAULT '',
    model TEXT NOT NULL DEFAULT '',
    gateway TEXT NOT NULL DEFAULT '',
    day TEXT NOT NULL DEFAULT '',
    opened_unix_s REAL,
    prompt_tokens INTEGER NOT NULL DEFAULT 0,
    max_tokens INTEGER NOT NULL DEFAULT 0,
    settled_unix_s REAL,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    cached_tokens INTEGER NOT NULL DEFAULT 0,
    finish TEXT NOT NULL DEFAULT '',
    attempts INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS usage_tenant_day ON usage (tenant, day);
CREATE INDEX IF NOT EXISTS usage_unsettled ON usage (request) WHERE settled_unix_s IS NULL;
CREATE TABLE IF NOT EXISTS audit (sequence INTEGER PRIMARY KEY, record TEXT NOT NULL);
"""

_OPENED = """
INSERT INTO usage (request, tenant, key, model, gateway, day, opened_unix_s, prompt_tokens, max_tokens)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (request) DO UPDATE SET
    tenant = excluded.tenant, key = excluded.key, model = excluded.model, gateway = excluded.gateway,
    day = excluded.day, opened_unix_s = excluded.opened_unix_s, max_tokens = excluded.max_tokens
"""

_SETTLED = """
INSERT INTO usage (request, settled_unix_s, prompt_tokens, output_tokens, cached_tokens, finish, attempts)
VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (request) DO UPDATE SET
    settled_unix_s = excluded.settled_unix_s, prompt_tokens = excluded.prompt_tokens,
    output_tokens = excluded.output_tokens, cached_tokens = excluded.cached_tokens,
    finish = excluded.finish, attempts = excluded.attempts
WHERE usage.settled_unix_s IS NULL OR excluded.output_tokens > usage.output_tokens
"""

_GROUPS = {
    "tenant": ("tenant", "''", "''", "''"),
    "day": ("tenant", "day", "''", "''"),
    "key": ("tenant", "''", "key", "''"),
    "request": ("tenant", "day", "key", "request"),
}


class LedgerStore:
    """Not thread-safe by itself: one caller at a time, from any thread."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")  # JetStream forgets a record once we acknowledge it
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Idempotent."""
        self._db.close()

    def fold_usage(self, records: Iterable[UsageOpened | UsageSettled]) -> None:
        """Fold a batch in one transaction. Idempotent, and indifferent to the order of a request's two records."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for record in records:
                if isinstance(record, UsageOpened):
                    self._db.execute(_OPENED, _opened_row(record))
                else:
                    self._db.execute(_SETTLED, _settled_row(record))

    def fold_audit(self, records: Iterable[tuple[int, str]]) -> None:
        """Keep (stream sequence, JSON) pairs. Idempotent."""
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR IGNORE INTO audit VALUES (?, ?)", records)

    def usage(self, query: UsageQuery) -> list[UsageRow]:
        """Sums of settled usage in the grouping asked for. Raises ValueError for a grouping that is not offered."""
        columns = _GROUPS.get(query.by)
        if columns is None:
            raise ValueError(f"by={query.by!r} is not offered; use one of {', '.join(_GROUPS)}")
        tenant, day, key, request = columns
        sql = f"""
            SELECT {tenant}, {day}, {key}, {request}, COUNT(settled_unix_s),
                COALESCE(SUM(CASE WHEN settled_unix_s IS NULL THEN 0 ELSE prompt_tokens END), 0),
                COALESCE(SUM(output_tokens), 0), COALESCE(SUM(cached_tokens), 0),
                SUM(settled_unix_s IS NULL)
            FROM usage
            WHERE (? = '' OR tenant = ?) AND (? = '' OR day >= ?) AND (? = '' OR day <= ?)
            GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4 LIMIT ?
        """
        arguments = (*[query.tenant] * 2, *[query.since] * 2, *[query.until] * 2, query.limit)
        return [UsageRow(*row) for row in self._db.execute(sql, arguments)]

    def unsettled(self) -> int:
        """Requests written ahead and not settled yet."""
        (count,) = self._db.execute("SELECT COUNT(*) FROM usage WHERE settled_unix_s IS NULL").fetchone()
        return int(count)

    def audit(self, limit: int) -> list[str]:
        """The latest records, newest first."""
        rows = self._db.execute("SELECT record FROM audit ORDER BY sequence DESC LIMIT ?", (limit,))
        return [record for (record,) in rows]


def _opened_row(record: UsageOpened) -> tuple[object, ...]:
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


def _settled_row(record: UsageSettled) -> tuple[object, ...]:
    return (
        record.request,
        record.settled_unix_s,
        record.prompt_tokens,
        record.output_tokens,
        record.cached_tokens,
        record.finish,
        record.attempts,
    )
