"""Live migration: which moves are chosen, that they come to rest, and the staged copy."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.links import Links
from policies.migration import (
    Balance,
    Migration,
    MigrationPolicy,
    Movable,
    Move,
    Stage,
    choose_moves,
    gap_shrinks,
)

POLICY = MigrationPolicy(low=8.0, high=10.0)


class Quiet:
    """A fleet in which nothing happens but migrations: workers of `blocks` blocks, requests that only sit there."""

    def __init__(self, blocks: int, requests: dict[str, list[Movable]], draining: frozenset[str] = frozenset()) -> None:
        self.blocks, self.requests, self.draining = blocks, requests, draining

    def balances(self) -> list[Balance]:
        balances = []
        for worker, rows in self.requests.items():
            used = sum(row.blocks for row in rows)
            virtual = inf if worker in self.draining else used
            balances.append(Balance(worker, self.blocks, virtual, len(rows), self.blocks - used))
        return balances

    def round(self, policy: MigrationPolicy) -> list[Move]:
        """One round of moves, carried out at once."""
        moves = choose_moves(self.balances(), self.requests, policy=policy)
        for move in moves:
            row = next(row for row in self.requests[move.source] if row.id == move.request)
            self.requests[move.source].remove(row)
            self.requests[move.destination].append(row)
        return moves

    def rounds(self, policy: MigrationPolicy, *, most: int) -> int:
        """How many rounds until nothing moves any more, at most `most`."""
        return next((number for number in range(most) if not self.round(policy)), most)


def lopsided() -> Quiet:
    return Quiet(100, {"a": [Movable("r", 1, 95)], "b": []})


def test_without_the_gap_rule_a_request_ping_pongs() -> None:
    """The naive rule (low to high, whatever it does) throws the same request to and fro for ever; ours lets it be."""
    naive = MigrationPolicy(low=8.0, high=10.0, gap_rule=False)
    fleet = lopsided()
    seen = [fleet.round(naive) for _ in range(6)]
    assert seen == [[Move("r", "a", "b")], [Move("r", "b", "a")]] * 3
    assert lopsided().rounds(POLICY, most=10) == 0


def test_the_fullest_give_to_the_emptiest() -> None:
    """Lowest freeness first, highest freeness first, one request a pair."""
    rows = {
        "full": [Movable(f"f{i}", 1, 19) for i in range(5)],
        "fuller": [Movable(f"g{i}", 1, 24) for i in range(4)],
        "empty": [],
        "emptier": [],
    }
    balances = [
        Balance("full", 100, 95, 5, 5),
        Balance("fuller", 100, 96, 4, 4),
        Balance("empty", 100, 20, 1, 80),
        Balance("emptier", 100, 0, 0, 100),
    ]
    assert choose_moves(balances, rows, policy=POLICY) == [Move("f0", "full", "emptier"), Move("g0", "fuller", "empty")]


def test_low_classes_and_short_requests_move_first() -> None:
    """A flex request before any other, and of equals the one with the least to copy."""
    rows = {"a": [Movable("priority", 0, 10), Movable("long", 1, 40), Movable("short", 1, 20), Movable("flex", 2, 25)]}
    source, destination = Balance("a", 100, 95, 4, 5), Balance("b", 100, 0, 0, 100)
    for expected in ("flex", "short", "long", "priority"):
        (move,) = choose_moves([source, destination], rows, policy=POLICY)
        assert move.request == expected
        rows["a"] = [row for row in rows["a"] if row.id != expected]


def test_what_does_not_fit_does_not_move() -> None:
    """A destination that has freeness but no free blocks for the request is passed over, as is one in a copy."""
    rows = {"a": [Movable("r", 1, 30), Movable("s", 1, 65)]}
    source, full, free = Balance("a", 100, 95, 2, 5), Balance("b", 100, 0, 0, 20), Balance("c", 100, 10, 0, 60)
    assert choose_moves([source, full, free], rows, policy=POLICY) == [Move("r", "a", "c")]
    assert choose_moves([source, full, free], rows, policy=POLICY, busy=["c"]) == []
    assert choose_moves([source, full, free], rows, policy=POLICY, busy=["a"]) == []


def test_a_draining_worker_is_emptied() -> None:
    """Everything leaves it, as far as there is room, whatever the gaps and the thresholds; nothing comes."""
    fleet = Quiet(100, {"a": [Movable(f"r{i}", 1, 10) for i in range(6)], "b": [], "c": [Movable("x", 1, 50)]})
    fleet.draining = frozenset("a")
    assert fleet.rounds(POLICY, most=20) < 20
    assert fleet.requests["a"] == []
    assert sum(len(rows) for rows in fleet.requests.values()) == 7


def test_a_gap_that_would_open_the_other_way_is_no_reason() -> None:
    """A move that leaves the destination worse off than the source is refused, one that narrows the gap is not."""
    full, empty = Balance("a", 100, 90, 3, 10), Balance("b", 100, 0, 0, 100)
    assert gap_shrinks(full, empty, 30)
    assert not gap_shrinks(full, empty, 89)
    assert not gap_shrinks(full, full._replace(worker="c"), 10)


FLEETS = st.lists(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40)), max_size=8), min_size=2, max_size=6)


@given(fleet=FLEETS, low=st.floats(0, 40), spread=st.floats(0, 40), drained=st.sets(st.integers(0, 5), max_size=2))
def test_a_quiet_system_comes_to_rest(
    fleet: list[list[tuple[int, int]]], low: float, spread: float, drained: set[int]
) -> None:
    """When nothing else happens migrations end, every request is where it was or on one other worker, and no worker
    that drains gets one."""
    requests = {
        f"w{i}": [Movable(f"r{i}.{j}", tier, blocks) for j, (tier, blocks) in enumerate(rows)]
        for i, rows in enumerate(fleet)
    }
    everybody = sorted(row for rows in requests.values() for row in rows)
    quiet = Quiet(320, requests, frozenset(f"w{i}" for i in drained if i < len(fleet)))
    policy = MigrationPolicy(low=low, high=low + spread)
    for _ in range(400):
        moves = quiet.round(policy)
        assert len({move.request for move in moves}) == len(moves)
        assert not {move.destination for move in moves} & quiet.draining
        assert not {move.destination for move in moves} & {move.source for move in moves}
        if not moves:
            break
    else:
        raise AssertionError("still migrating after 400 rounds")
    assert sorted(row for rows in requests.values() for row in rows) == everybody


def test_stages_shrink_until_a_block_is_left() -> None:
    """Stage 0 copies the full blocks, each next one what came meanwhile, and the request stops for the last block."""
    migration = Migration(Move("r", "a", "b"), computed=1000, policy=POLICY)
    migration.reserved(granted=True)
    assert (migration.stage, migration.copy, migration.want) == (Stage.copying, 992, 1024)
    migration.copied(1090)
    assert (migration.stage, migration.want) == (Stage.reserving, 1120)
    migration.reserved(granted=True)
    assert migration.copy == 96
    migration.copied(1100)
    assert (migration.stage, migration.sent) == (Stage.stopping, 1088)
    migration.stopped(1102)
    assert (migration.stage, migration.copy) == (Stage.finishing, 14)
    migration.copied(1102)
    assert (migration.stage, migration.sent) == (Stage.done, 1102)


@pytest.mark.parametrize("tokens", [500, 4000, 64_000])
def test_a_request_stands_still_equally_long_whatever_its_length(tokens: int) -> None:
    """At 25 ms a token and 10 KiB/token over 10 GB/s, the last stage copies a block at most."""
    links, now, computed = Links(10e9), 0.0, tokens
    migration = Migration(Move("r", "a", "b"), computed=computed, policy=POLICY)
    while migration.stage is not Stage.stopping:
        migration.reserved(granted=True)
        done = links.send("a", "b", migration.copy * 10_240, now).done_s
        computed += int((done - now) / 0.025)
        now = done
        migration.copied(computed)
    migration.stopped(computed)
    assert migration.copy <= 16
    assert migration.stages <= 4
    assert links.send("a", "b", migration.copy * 10_240, now).done_s - now < 1e-4


def test_a_link_that_does_not_catch_up_leaves_the_request_where_it_is() -> None:
    """After `max_stages` copies the migration is given up rather than the request stopped for long."""
    migration = Migration(Move("r", "a", "b"), computed=160, policy=POLICY)
    computed = 160
    while migration.stage is Stage.reserving:
        migration.reserved(granted=True)
        computed += 40
        migration.copied(computed)
    assert migration.stage is Stage.aborted
    assert "too slow" in migration.why
    assert migration.stages == POLICY.max_stages


def test_no_room_ends_it_and_an_end_at_the_source_too() -> None:
    """Whatever happens before the source lets go, the request stays there; afterwards there is no way back."""
    refused = Migration(Move("r", "a", "b"), computed=160, policy=POLICY)
    refused.reserved(granted=False)
    assert (refused.stage, refused.why) == (Stage.aborted, "no room at the destination")
    ended = Migration(Move("r", "a", "b"), computed=160, policy=POLICY)
    ended.reserved(granted=True)
    ended.abort("preempted")
    assert ended.stage is Stage.aborted
    late = Migration(Move("r", "a", "b"), computed=160, policy=POLICY)
    late.reserved(granted=True)
    late.copied(161)
    late.stopped(161)
    with pytest.raises(ValueError, match="cannot stay at a"):
        late.abort("preempted")


@given(
    computed=st.integers(1, 3000),
    grown=st.lists(st.integers(0, 60), max_size=12),
    refused_at=st.integers(0, 12),
    late=st.integers(0, 4),
)
def test_a_copy_never_outruns_its_room_and_is_whole_when_done(
    computed: int, grown: list[int], refused_at: int, late: int
) -> None:
    """At every moment what was sent fits what the destination granted, and `done` means all of it is there."""
    migration = Migration(Move("r", "a", "b"), computed=computed, policy=POLICY)
    room = 0
    for number, more in enumerate(grown):
        if migration.stage is Stage.reserving:
            granted = number != refused_at
            room = migration.want if granted else room
            migration.reserved(granted=granted)
        elif migration.stage is Stage.copying:
            assert migration.sent + migration.copy <= min(room, computed)
            computed += more
            migration.copied(computed)
        elif migration.stage is Stage.stopping:
            computed += late  # the steps in flight
            migration.stopped(computed)
            assert computed <= room
        elif migration.stage is Stage.finishing:
            migration.copied(computed)
        else:
            break
    assert migration.stage is not Stage.done or migration.sent == computed


def test_transfers_wait_for_both_their_ends() -> None:
    """First come first served at either end; transfers between other workers do not notice."""
    links = Links(1e9, latency_s=0.001)
    assert links.send("a", "b", 10**9, 0.0).done_s == pytest.approx(1.001)
    assert links.send("a", "c", 10**9, 0.5).begun_s == pytest.approx(1.001)
    assert links.send("d", "b", 10**9, 0.5).begun_s == pytest.approx(1.001)
    assert links.send("e", "f", 10**9, 0.5).begun_s == 0.5
    assert links.send("b", "a", 10**9, 0.5).begun_s == 0.5
    assert links.moved_bytes == 5 * 10**9
    with pytest.raises(ValueError, match="must be positive"):
        Links(0.0)
