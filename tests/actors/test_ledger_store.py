"""The contract of the ledger's stores, held by SQLite and by a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import permutations
from pathlib import Path

import pytest
from postgres_server import PASSWORD, PostgresServer, postgres

from actors.ledger_postgres import PostgresLedger
from actors.ledger_sqlite import SqliteLedger
from actors.ledger_store import LedgerStore
from actors.messages import UsageOpened, UsageQuery, UsageSettled

NOON = 1_700_000_000.0  # 2023-11-14, UTC


Make = Callable[[], LedgerStore]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgres"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Each call opens the same books."""
    with ExitStack() as stack:
        if request.param == "sqlite":

            def sqlite() -> LedgerStore:
                return stack.enter_context(closing(SqliteLedger(tmp_path / "usage.db")))

            yield sqlite
        else:
            server: PostgresServer = request.getfixturevalue("server")
            server.empty()

            def in_postgres() -> LedgerStore:
                return stack.enter_context(closing(PostgresLedger(server.url, password=PASSWORD)))

            yield in_postgres


@pytest.fixture
def store(make: Make) -> LedgerStore:
    return make()


def opened(request: str, *, tenant: str = "acme", key: str = "k1", at: float = NOON) -> UsageOpened:
    return UsageOpened(request, tenant, key, "m", "g0", 10, 50, at)


def settled(request: str, *, outputs: int = 20) -> UsageSettled:
    return UsageSettled(request, 10, outputs, 4, "stop", 1, NOON + 1)


def test_sums_count_what_is_settled(store: LedgerStore) -> None:
    """A request counts with its tokens once it is settled; until then it is only `unsettled`."""
    store.fold_usage([opened("r1"), opened("r2"), settled("r1")])
    (row,) = store.usage(UsageQuery())
    assert (row.requests, row.prompt_tokens, row.output_tokens, row.cached_tokens, row.unsettled) == (1, 10, 20, 4, 1)
    assert store.unsettled() == 1


def test_folding_is_idempotent_in_any_order(store: LedgerStore) -> None:
    """Redelivery and any order of a request's records give the same books."""
    for number, order in enumerate(sorted(set(permutations((0, 0, 1, 1))))):
        records: list[UsageOpened | UsageSettled] = [opened(f"r{number}"), settled(f"r{number}")]
        store.fold_usage([records[i] for i in order])
    for row in store.usage(UsageQuery(by="request")):
        assert (row.tenant, row.requests, row.output_tokens, row.unsettled) == ("acme", 1, 20, 0)


def test_what_was_never_written_ahead_is_nobodys_usage(store: LedgerStore) -> None:
    """Admitted while its gateway was dying, it was settled and never answered: it is in no sum until it has an owner,
    and nothing waits for it."""
    store.fold_usage([settled("r1"), opened("r2"), settled("r2")])
    assert [(row.tenant, row.requests) for row in store.usage(UsageQuery())] == [("acme", 1)]
    assert store.unsettled() == 0
    store.fold_usage([opened("r1")])
    assert [(row.tenant, row.requests) for row in store.usage(UsageQuery())] == [("acme", 2)]


def test_the_settlement_of_most_outputs_counts(store: LedgerStore) -> None:
    """Whichever comes first: a gateway that was taken for dead may have streamed on."""
    store.fold_usage([opened("r1"), settled("r1", outputs=5), settled("r1", outputs=20)])
    store.fold_usage([opened("r2"), settled("r2", outputs=20), settled("r2", outputs=5)])
    assert [row.output_tokens for row in store.usage(UsageQuery(by="request"))] == [20, 20]


def test_what_was_folded_is_there_for_who_opens_the_books_again(make: Make) -> None:
    """Another store on the same database, the first one still open or not."""
    first = make()
    first.fold_usage([opened("r1"), settled("r1")])
    first.fold_audit([(1, "a")])
    second = make()
    second.ping()
    assert (second.usage(UsageQuery())[0].requests, second.audit(5)) == (1, ["a"])
    first.close()
    first.close()
    assert second.unsettled() == 0


def test_texts_are_kept_and_ordered_by_their_bytes(store: LedgerStore) -> None:
    """Not by a locale; and a NUL in a client's text stops nothing."""
    tenants = ["B", "a", "ä", "Z"]
    store.fold_usage([opened(f"r{i}", tenant=tenant) for i, tenant in enumerate(tenants)])
    assert [row.tenant for row in store.usage(UsageQuery())] == ["B", "Z", "a", "ä"]
    store.fold_usage([opened("r\0x", tenant="zz")])
    assert store.usage(UsageQuery(tenant="zz"))[0].unsettled == 1


def test_a_limit_bounds_the_rows(store: LedgerStore) -> None:
    """The first ones in their order."""
    store.fold_usage([opened(f"r{i}") for i in range(5)])
    assert [row.request for row in store.usage(UsageQuery(by="request", limit=2))] == ["r0", "r1"]


def test_groups_and_filters(store: LedgerStore) -> None:
    """Sums come by tenant, day, key or request, and can be narrowed to a tenant and to days."""
    day = 86_400
    store.fold_usage([opened("r1"), opened("r2", tenant="b", key="k2"), opened("r3", at=NOON + day)])
    store.fold_usage([settled("r1"), settled("r2"), settled("r3", outputs=5)])
    assert [(r.tenant, r.requests) for r in store.usage(UsageQuery())] == [("acme", 2), ("b", 1)]
    days = store.usage(UsageQuery(by="day", tenant="acme"))
    assert [(r.day, r.output_tokens) for r in days] == [("2023-11-14", 20), ("2023-11-15", 5)]
    assert [r.key for r in store.usage(UsageQuery(by="key"))] == ["k1", "k2"]
    assert [r.request for r in store.usage(UsageQuery(by="request", since="2023-11-15"))] == ["r3"]


def test_a_grouping_that_is_not_offered_is_named(store: LedgerStore) -> None:
    """The error says what was asked and what may be."""
    with pytest.raises(ValueError, match=r"by='week'.*tenant, day, key, request"):
        store.usage(UsageQuery(by="week"))


def test_audit_is_newest_first_and_kept_once(store: LedgerStore) -> None:
    """A record that is delivered twice is one record."""
    store.fold_audit([(1, "a"), (2, "b")])
    store.fold_audit([(2, "b"), (3, "c")])
    assert store.audit(2) == ["c", "b"]
