"""Usage and audit in SQLite."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import pytest

from actors.ledger_store import LedgerStore
from actors.messages import UsageOpened, UsageQuery, UsageSettled

NOON = 1_700_000_000.0  # 2023-11-14, UTC


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LedgerStore]:
    store = LedgerStore(tmp_path / "usage.db")
    yield store
    store.close()


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


def test_folding_is_idempotent_in_any_order(tmp_path: Path) -> None:
    """Redelivery and any order of a request's records give the same books."""
    records = [opened("r1"), settled("r1"), opened("r1"), settled("r1")]
    for number, order in enumerate(set(permutations(range(4)))):
        store = LedgerStore(tmp_path / f"{number}.db")
        store.fold_usage([records[i] for i in order])
        (row,) = store.usage(UsageQuery(by="request"))
        assert (row.tenant, row.requests, row.output_tokens, row.unsettled) == ("acme", 1, 20, 0)
        store.close()


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
