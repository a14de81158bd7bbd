"""Usage and audit in SQLite: what a stack on one machine keeps its books in."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actors.ledger_store import LedgerAway, columns_of, opened_row, settled_row
from actors.messages import UsageOpened, UsageQuery, UsageRow, UsageSettled

__all__ = ["SqliteLedger"]

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


class SqliteLedger:
    """Implements `LedgerStore` in a file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")  # JetStream forgets a record once we acknowledge it
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        self._db.close()

    def ping(self) -> None:
        self._run("SELECT 1")

    def fold_usage(self, records: Iterable[UsageOpened | UsageSettled]) -> None:
        with self._transaction():
            for record in records:
                if isinstance(record, UsageOpened):
                    self._db.execute(_OPENED, opened_row(record))
                else:
                    self._db.execute(_SETTLED, settled_row(record))

    def fold_audit(self, records: Iterable[tuple[int, str]]) -> None:
        with self._transaction():
            self._db.executemany("INSERT OR IGNORE INTO audit VALUES (?, ?)", records)

    def usage(self, query: UsageQuery) -> list[UsageRow]:
        tenant, day, key, request = columns_of(query)
        sql = f"""
            SELECT {tenant}, {day}, {key}, {request}, COUNT(settled_unix_s),
                COALESCE(SUM(CASE WHEN settled_unix_s IS NULL THEN 0 ELSE prompt_tokens END), 0),
                COALESCE(SUM(output_tokens), 0), COALESCE(SUM(cached_tokens), 0),
                SUM(settled_unix_s IS NULL)
            FROM usage
            WHERE opened_unix_s IS NOT NULL
                AND (? = '' OR tenant = ?) AND (? = '' OR day >= ?) AND (? = '' OR day <= ?)
            GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4 LIMIT ?
        """
        arguments = (*[query.tenant] * 2, *[query.since] * 2, *[query.until] * 2, query.limit)
        return [UsageRow(*row) for row in self._run(sql, arguments)]

    def unsettled(self) -> int:
        ((count,),) = self._run("SELECT COUNT(*) FROM usage WHERE settled_unix_s IS NULL")
        return int(count)

    def audit(self, limit: int) -> list[str]:
        rows = self._run("SELECT record FROM audit ORDER BY sequence DESC LIMIT ?", (limit,))
        return [record for (record,) in rows]

    def _run(self, sql: str, arguments: tuple[object, ...] = ()) -> list[Any]:
        try:
            return self._db.execute(sql, arguments).fetchall()
        except sqlite3.OperationalError as error:
            raise LedgerAway(f"SQLite: {error}") from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                yield
        except sqlite3.OperationalError as error:  # the disk is full, or another process holds the file
            raise LedgerAway(f"SQLite: {error}") from error
