"""Usage and audit in PostgreSQL, for stacks of several machines.

The connection is made when it is needed and forgotten when anything goes wrong with it: whoever asks hears `LedgerAway`
and asks again. A transaction whose COMMIT was not answered may have been kept or not; folding is idempotent, so both
are right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, LiteralString

import psycopg
import structlog

from actors.ledger_store import LedgerAway, columns_of, opened_row, settled_row
from actors.messages import UsageOpened, UsageQuery, UsageRow, UsageSettled

__all__ = ["PostgresLedger"]

#: Each brings the schema from its index to the next version, and never changes again. Texts compare by their bytes, as
#: in SQLite, whatever the locale of the database.
_MIGRATIONS: tuple[LiteralString, ...] = (
    """
    CREATE TABLE usage (
        request TEXT COLLATE "C" PRIMARY KEY,
        tenant TEXT COLLATE "C" NOT NULL DEFAULT '',
        key TEXT COLLATE "C" NOT NULL DEFAULT '',
        model TEXT COLLATE "C" NOT NULL DEFAULT '',
        gateway TEXT COLLATE "C" NOT NULL DEFAULT '',
        day TEXT COLLATE "C" NOT NULL DEFAULT '',
        opened_unix_s DOUBLE PRECISION,
        prompt_tokens BIGINT NOT NULL DEFAULT 0,
        max_tokens BIGINT NOT NULL DEFAULT 0,
        settled_unix_s DOUBLE PRECISION,
        output_tokens BIGINT NOT NULL DEFAULT 0,
        cached_tokens BIGINT NOT NULL DEFAULT 0,
        finish TEXT COLLATE "C" NOT NULL DEFAULT '',
        attempts BIGINT NOT NULL DEFAULT 0
    );
    CREATE INDEX usage_tenant_day ON usage (tenant, day);
    CREATE INDEX usage_unsettled ON usage (request) WHERE settled_unix_s IS NULL;
    CREATE TABLE audit (sequence BIGINT PRIMARY KEY, record TEXT NOT NULL);
    """,
)

#: Two ledgers that start at once make the schema one after the other.
_LOCK = 0x68656164

_OPENED: LiteralString = """
INSERT INTO usage (request, tenant, key, model, gateway, day, opened_unix_s, prompt_tokens, max_tokens)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (request) DO UPDATE SET
    tenant = excluded.tenant, key = excluded.key, model = excluded.model, gateway = excluded.gateway,
    day = excluded.day, opened_unix_s = excluded.opened_unix_s, max_tokens = excluded.max_tokens
"""

_SETTLED: LiteralString = """
INSERT INTO usage (request, settled_unix_s, prompt_tokens, output_tokens, cached_tokens, finish, attempts)
VALUES (%s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (request) DO UPDATE SET
    settled_unix_s = excluded.settled_unix_s, prompt_tokens = excluded.prompt_tokens,
    output_tokens = excluded.output_tokens, cached_tokens = excluded.cached_tokens,
    finish = excluded.finish, attempts = excluded.attempts
WHERE usage.settled_unix_s IS NULL OR excluded.output_tokens > usage.output_tokens
"""

_CONNECT_S = 3
#: A peer that is gone without a word is noticed after 5 + 2 x 2 s, and one that takes nothing after 10 s.
_KEEPALIVE: dict[str, Any] = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": 10_000,
}


class PostgresLedger:
    """Implements `LedgerStore`. `url`: postgresql://user@host:port/database. Makes its tables at the first connection.

    `password` is that of the user; None if the URL has it, or none is needed.
    """

    def __init__(self, url: str, *, password: str | None = None) -> None:
        self._url = url
        self._password = password
        self._connected: psycopg.Connection[Any] | None = None
        self._log = structlog.get_logger()

    def close(self) -> None:
        connection, self._connected = self._connected, None
        if connection is not None:
            connection.close()

    def ping(self) -> None:
        self._run("SELECT 1")

    def fold_usage(self, records: Iterable[UsageOpened | UsageSettled]) -> None:
        opened, settled = [], []
        for record in records:
            if isinstance(record, UsageOpened):
                opened.append(_storable(opened_row(record)))
            else:
                settled.append(_storable(settled_row(record)))
        with self._transaction() as cursor:
            if opened:
                cursor.executemany(_OPENED, opened)
            if settled:
                cursor.executemany(_SETTLED, settled)

    def fold_audit(self, records: Iterable[tuple[int, str]]) -> None:
        rows = [_storable(record) for record in records]
        with self._transaction() as cursor:
            cursor.executemany("INSERT INTO audit VALUES (%s, %s) ON CONFLICT DO NOTHING", rows)

    def usage(self, query: UsageQuery) -> list[UsageRow]:
        tenant, day, key, request = columns_of(query)
        sql = f"""
            SELECT {tenant}, {day}, {key}, {request}, COUNT(settled_unix_s),
                COALESCE(SUM(prompt_tokens) FILTER (WHERE settled_unix_s IS NOT NULL), 0)::bigint,
                COALESCE(SUM(output_tokens), 0)::bigint, COALESCE(SUM(cached_tokens), 0)::bigint,
                COUNT(*) FILTER (WHERE settled_unix_s IS NULL)
            FROM usage
            WHERE opened_unix_s IS NOT NULL
                AND (%s::text = '' OR tenant = %s) AND (%s::text = '' OR day >= %s) AND (%s::text = '' OR day <= %s)
            GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4 LIMIT %s
        """
        arguments = _storable((*[query.tenant] * 2, *[query.since] * 2, *[query.until] * 2, query.limit))
        return [UsageRow(*row) for row in self._run(sql, arguments)]

    def unsettled(self) -> int:
        ((count,),) = self._run("SELECT COUNT(*) FROM usage WHERE settled_unix_s IS NULL")
        return int(count)

    def audit(self, limit: int) -> list[str]:
        rows = self._run("SELECT record FROM audit ORDER BY sequence DESC LIMIT %s", (limit,))
        return [record for (record,) in rows]

    def _run(self, sql: LiteralString, arguments: tuple[object, ...] = ()) -> list[Any]:
        with self._transaction() as cursor:
            return cursor.execute(sql, arguments).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[psycopg.Cursor[Any]]:
        """Committed at the end. Whatever fails is `LedgerAway`, and ends the connection: the next one is a new one."""
        try:
            connection = self._connected = self._connected or self._connect()
            with connection.transaction(), connection.cursor() as cursor:
                yield cursor
        except psycopg.Error as error:
            self.close()
            raise LedgerAway(f"PostgreSQL: {_first_line(error)}") from error
        except LedgerAway:
            self.close()
            raise

    def _connect(self) -> psycopg.Connection[Any]:
        options: dict[str, Any] = {"password": self._password} if self._password is not None else {}
        connection = psycopg.connect(
            self._url,
            autocommit=True,
            connect_timeout=_CONNECT_S,
            application_name="headgate-ledger",
            **_KEEPALIVE,
            **options,
        )
        try:
            self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _migrate(self, connection: psycopg.Connection[Any]) -> None:
        with connection.transaction(), connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            cursor.execute("CREATE TABLE IF NOT EXISTS ledger_schema (version INTEGER NOT NULL)")
            found = cursor.execute("SELECT version FROM ledger_schema").fetchone()
            version = int(found[0]) if found is not None else 0
            if version > len(_MIGRATIONS):
                raise LedgerAway(
                    f"the schema has version {version}, and this ledger knows {len(_MIGRATIONS)}: upgrade it"
                )
            for migration in _MIGRATIONS[version:]:
                cursor.execute(migration)
            if found is None:
                cursor.execute("INSERT INTO ledger_schema VALUES (%s)", (len(_MIGRATIONS),))
            elif version < len(_MIGRATIONS):
                cursor.execute("UPDATE ledger_schema SET version = %s", (len(_MIGRATIONS),))
        if version < len(_MIGRATIONS):
            self._log.info("ledger schema made", version=len(_MIGRATIONS), before=version)


def _storable(row: tuple[object, ...]) -> tuple[object, ...]:
    """PostgreSQL keeps no NUL in a text: one in a client's request id must not stop the ledger."""
    return tuple(value.replace("\0", "\ufffd") if isinstance(value, str) else value for value in row)


def _first_line(error: psycopg.Error) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
