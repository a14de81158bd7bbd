"""Standbys in virtual time: heartbeats decide that a holder is gone, the lease who comes next."""

from __future__ import annotations

import asyncio

from runtime_stage import Doer, Stage, play

from actors.runtime import LEASE_TTL_S, Lease, Node, Silence, heartbeat, supervise


class Boss(Doer):
    """Holds the lease of its role, and beats its heart while it does."""

    async def on_start(self, node: Node) -> None:
        silence = Silence(self.role)
        await silence.start(self)
        await self.hold(Lease(node, "boss", node.name, ttl_s=LEASE_TTL_S, is_deserted=silence))
        heartbeat(self)
        self.diary.append(node.epoch)


async def start(stage: Stage, instance: str) -> tuple[Node, asyncio.Event, asyncio.Task[None]]:
    node, ready = await stage.node("doer", instance), asyncio.Event()
    return node, ready, asyncio.create_task(supervise(Boss, node, ready=ready))


async def end(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def kill(node: Node, serving: asyncio.Task[None]) -> None:
    """As kill -9 does: not a word, and its lease stays as it is."""
    for lease in node._leases:
        lease._is_lost = True
    await node.transport.close()
    await end(serving)


def test_a_standby_takes_over_soon_after_the_last_heartbeat() -> None:
    """In far less than the ttl, with a higher epoch."""

    async def scene(stage: Stage) -> None:
        first, ready, serving = await start(stage, "d0")
        await ready.wait()
        second, standby, waiting = await start(stage, "d1")
        await asyncio.sleep(60)
        assert not standby.is_set()
        await kill(first, serving)
        died = second.clock()
        await asyncio.wait_for(standby.wait(), LEASE_TTL_S)
        assert 1.0 <= second.clock() - died <= 2.2
        assert second.epoch > first.epoch
        await end(waiting)

    play(scene)


def test_of_many_standbys_one_takes_over() -> None:
    """The compare-and-set lets one through; the others hear its heartbeat and go on waiting."""

    async def scene(stage: Stage) -> None:
        first, ready, serving = await start(stage, "d0")
        await ready.wait()
        others = [await start(stage, f"d{i}") for i in range(1, 5)]
        await asyncio.sleep(5)
        await kill(first, serving)
        await asyncio.sleep(60)
        assert sum(standby.is_set() for _, standby, _ in others) == 1
        await end(*(waiting for _, _, waiting in others))

    play(scene)


def test_who_is_cut_off_itself_takes_nothing_over() -> None:
    """Silence counts only while there is a connection to hear by; a record without a heartbeat is nobody's."""

    async def scene(stage: Stage) -> None:
        node = await stage.node("doer", "d1")
        actor, silence = Doer(), Silence("doer")
        serving = asyncio.create_task(node.serve(actor))
        await asyncio.sleep(0.1)
        await silence.start(actor)
        await asyncio.sleep(0.5)
        assert not silence()
        await asyncio.sleep(2.0)
        assert silence()
        await node.transport.close()
        await asyncio.sleep(0.5)
        assert not silence()
        await end(serving)

    play(scene)


def test_a_long_lease_outlasts_an_election_of_the_store() -> None:
    """Nine seconds in which no renewal is answered cost nothing: no end of the holder, no new epoch."""

    async def scene(stage: Stage) -> None:
        node, ready, serving = await start(stage, "d0")
        await ready.wait()
        _, standby, waiting = await start(stage, "d1")
        await asyncio.sleep(5)
        epoch, bucket = node.epoch, stage.broker.buckets["leases"]
        real = bucket.update

        async def never(key: str, value: bytes, revision: int) -> int:
            await asyncio.sleep(1000)
            raise AssertionError

        bucket.update = never  # type: ignore[method-assign]
        await asyncio.sleep(9)
        bucket.update = real  # type: ignore[method-assign]
        await asyncio.sleep(30)
        assert node.epoch == epoch
        assert not serving.done()
        assert not standby.is_set()
        await end(serving, waiting)

    play(scene)
