"""Checks that the books of a scheduler agree with each other: for tests, and for a scheduler with nothing to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from policies.errors import InvariantBroken
from policies.kv import KvMemory, blocks_for
from policies.order import WaitingQueue
from policies.rows import Flight, Place, Row
from policies.running import Running, worst_case
from policies.vocabulary import BLOCK_SIZE

__all__ = ["check_integrity"]


def check_integrity(
    kv: KvMemory, running: Running, waiting: WaitingQueue, rows: Iterable[Row], flights: Iterable[Flight]
) -> None:
    """:raises InvariantBroken: with what was found and where."""
    live = list(rows)
    kv.device.check()
    kv.host.check()
    kv.index.check()
    _check_holders(kv, live)
    _check_places(running, waiting, live)
    _check_counters(live, flights)


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise InvariantBroken(what)


def _check_holders(kv: KvMemory, live: list[Row]) -> None:
    for name, pool, held in (
        ("device", kv.device, Counter([*kv.transit.all_blocks(), *(block for row in live for block in row.blocks)])),
        ("host", kv.host, Counter(block for row in live for block in row.host_blocks.values())),
    ):
        counted = {block: refs for block, refs in enumerate(pool.refs) if refs > 0}  # below 0: parked
        for block in counted.keys() ^ held.keys() if counted != held else ():
            _require(False, f"{name} block {block} counts {counted.get(block, 0)} holders, {held[block]} rows hold it")
        for block, refs in counted.items() if counted != held else ():
            _require(refs == held[block], f"{name} block {block} counts {refs} holders, {held[block]} rows hold it")
    coming = len(kv.transit.all_blocks())
    _require(kv.transit.held == coming, f"{kv.transit.held} blocks are counted in transit, {coming} are")
    keepers = {row for row in live if row.place is Place.waiting and row.blocks}
    _require(kv.keepers.keys() == keepers, f"{len(kv.keepers)} rows are listed as keepers, {len(keepers)} wait so")
    copied = {row for row in live if row.place is not Place.waiting and row.host_blocks}
    _require(kv.copied.keys() == copied, f"{len(kv.copied)} rows are listed with copies, {len(copied)} run so")


def _check_places(running: Running, waiting: WaitingQueue, live: list[Row]) -> None:
    lists = {Place.prefilling: running.prefilling, Place.decoding: running.decoding, Place.draining: running.draining}
    for place, members in lists.items():
        expected = [row for row in live if row.place is place]
        _require(
            len(members) == len(expected) and set(members) == set(expected),
            f"{len(members)} rows are listed as {place.name}, {len(expected)} say that they are",
        )
    slots = [row.slot for row in running]
    _require(len(set(slots)) == len(slots) and len(slots) == len(running), f"slots {sorted(slots)} of {running.size}")
    expected_waiting = sum(1 for row in live if row.place is Place.waiting)
    _require(len(waiting) == expected_waiting, f"{len(waiting)} rows are queued, {expected_waiting} wait")
    reserved = sum(worst_case(row) for row in running if running.immune(row))
    _require(running.reserved == reserved, f"{running.reserved} blocks are reserved, immune rows need {reserved}")
    tiers = Counter(row.tier for row in running)
    _require(running.tiers == tiers, f"tiers are counted {running.tiers}, they are {dict(tiers)}")
    context = sum(row.position for row in running.decoding)
    _require(running.context == context, f"decode context is counted {running.context}, it is {context}")


def _check_counters(live: list[Row], flights: Iterable[Flight]) -> None:
    in_flight: Counter[int] = Counter()
    for flight in flights:
        for row, count in zip(flight.rows, flight.step.counts, strict=True):
            in_flight[id(row)] += count
    for row in live:
        name = row.request.id
        _require(row.in_flight == in_flight[id(row)], f"{name}: {row.in_flight} in flight, the steps say otherwise")
        _require(row.stale in (0, row.in_flight), f"{name}: {row.stale} of {row.in_flight} in flight are stale")
        _require(0 <= row.left <= row.end - len(row.tokens), f"{name}: {row.left} outputs left to plan")
        if row.place is Place.waiting:
            _require(row.slot < 0, f"{name} waits in a slot")
            _require(row.computed <= row.saved < len(row.tokens) + row.in_flight, f"{name}: {row.saved} tokens saved")
            lost = [
                place
                for place in range(blocks_for(row.saved))
                if place >= len(row.blocks) and place not in row.host_blocks
            ]
            _require(not lost, f"{name}: nobody holds its blocks {lost[:4]} of {row.saved} saved tokens")
            most = blocks_for(len(row.tokens) + row.in_flight)
            _require(len(row.blocks) <= most, f"{name} keeps {len(row.blocks)} blocks, more than it has tokens")
        else:
            _require(row.position <= row.room, f"{name}: position {row.position} is beyond its {row.room} of room")
            final = row.computed // BLOCK_SIZE
            _require(all(place < final for place in row.host_blocks), f"{name}: copies of blocks that still change")
            _require(row.computed < len(row.tokens), f"{name}: {row.computed} computed of {len(row.tokens)} known")
