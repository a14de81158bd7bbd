"""Leases in virtual time: one holder, growing epochs, and no comparing of clocks."""

from __future__ import annotations

import asyncio

import pytest
from runtime_stage import Doer, Note, Stage, play

from actors.runtime import Actor, Context, Lease, LeaseLost, MemoryTransport, Node, StoreUnavailable, handles, supervise
from actors.runtime.memory_store import MemoryBucket
from actors.runtime.transport import Entry


class Moody(MemoryBucket):
    """A bucket that can be away, or lose its answers."""

    def __init__(self) -> None:
        super().__init__()
        self.is_away = False
        self.loses_answers = False

    async def get(self, key: str) -> Entry | None:
        self._mood()
        return await super().get(key)

    async def create(self, key: str, value: bytes) -> int:
        self._mood()
        return await super().create(key, value)

    async def update(self, key: str, value: bytes, revision: int) -> int:
        self._mood()
        result = await super().update(key, value, revision)
        if self.loses_answers:
            raise StoreUnavailable("the answer was lost")
        return result

    def _mood(self) -> None:
        if self.is_away:
            raise StoreUnavailable("away")


def moody(stage: Stage) -> Moody:
    bucket = Moody()
    stage.broker.buckets["leases"] = bucket
    return bucket


def test_one_holds_and_the_other_waits_until_it_is_released() -> None:
    """A released lease passes on at once, with a higher epoch."""

    async def scene(stage: Stage) -> None:
        first, second = await stage.node("boss", "b0"), await stage.node("boss", "b1")
        async with Lease(first, "boss", "b0") as held:
            assert first.epoch == held.epoch > 0
            waiting = asyncio.create_task(Lease(second, "boss", "b1").acquire())
            await asyncio.sleep(60)
            assert not waiting.done()
            assert held.is_held
        released = first.clock()
        assert await waiting > held.epoch
        assert second.clock() - released < 0.5

    play(scene)


def test_an_expired_lease_is_taken_over_after_a_whole_ttl() -> None:
    """The waiter counts from when it last saw a change, and the holder has given up by then."""

    async def scene(stage: Stage) -> None:
        first, second = await stage.node("boss", "b0"), await stage.node("boss", "b1")
        dead = Lease(first, "boss", "b0", ttl_s=3.0)
        await dead.acquire()  # and is never renewed
        await asyncio.sleep(1.0)
        epoch = await Lease(second, "boss", "b1", ttl_s=3.0).acquire()
        assert epoch > dead.epoch
        assert 4.0 <= second.clock() <= 4.5
        assert not dead.is_held

    play(scene)


def test_the_same_holder_takes_over_at_once() -> None:
    """A restarted instance does not wait for its own predecessor to expire, which learns that it lost."""

    async def scene(stage: Stage) -> None:
        node, again = await stage.node("boss", "b0"), await stage.node("boss", "b0")

        async def predecessor() -> None:
            async with Lease(node, "boss", "b0"):
                await asyncio.sleep(1000)

        old = asyncio.create_task(predecessor())
        await asyncio.sleep(10)
        before = node.epoch
        assert await Lease(again, "boss", "b0").acquire() > before
        assert again.clock() - 10 < 0.1
        with pytest.raises(LeaseLost):
            await old
        assert again.clock() - 10 < 1.1

    play(scene)


@pytest.mark.parametrize("seed", range(5))
def test_a_lost_lease_cancels_the_body(seed: int) -> None:
    """Without a renewal for two thirds of the ttl the body is cancelled and LeaseLost raised."""

    async def scene(stage: Stage) -> None:
        bucket = moody(stage)
        node = await stage.node("boss", "b0")
        was_cancelled = False
        with pytest.raises(LeaseLost):  # noqa: PT012
            async with Lease(node, "boss", "b0", ttl_s=3.0):
                await asyncio.sleep(10)
                bucket.is_away = True
                cut = node.clock()
                try:
                    await asyncio.sleep(1000)
                except asyncio.CancelledError:
                    was_cancelled = True
                    raise
        assert was_cancelled
        assert 0.99 <= node.clock() - cut <= 2.01
        current = asyncio.current_task()
        assert current is not None
        assert current.cancelling() == 0

    play(scene, seed=seed)


def test_a_short_absence_of_the_store_costs_nothing() -> None:
    """Renewals are tried again while there is time."""

    async def scene(stage: Stage) -> None:
        bucket = moody(stage)
        node = await stage.node("boss", "b0")
        async with Lease(node, "boss", "b0", ttl_s=3.0) as lease:
            for _ in range(10):
                bucket.is_away = True
                await asyncio.sleep(0.8)
                bucket.is_away = False
                await asyncio.sleep(1.5)
            assert lease.is_held

    play(scene)


def test_a_renewal_whose_answer_was_lost_is_recognised() -> None:
    """The conflict with one's own write is not a loss."""

    async def scene(stage: Stage) -> None:
        bucket = moody(stage)
        node = await stage.node("boss", "b0")
        async with Lease(node, "boss", "b0", ttl_s=3.0) as lease:
            bucket.loses_answers = True
            await asyncio.sleep(1.05)
            bucket.loses_answers = False
            await asyncio.sleep(10)
            assert lease.is_held

    play(scene)


def test_an_outer_cancellation_is_not_swallowed() -> None:
    """A body that is cancelled from outside releases the lease and stays cancelled."""

    async def scene(stage: Stage) -> None:
        node = await stage.node("boss", "b0")

        async def body() -> None:
            async with Lease(node, "boss", "b0"):
                await asyncio.sleep(1000)

        task = asyncio.create_task(body())
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await stage.broker.buckets["leases"].keys() == []

    play(scene)


class Holder(Doer):
    """Holds a lease for as long as it lives."""

    async def on_start(self, node: Node) -> None:
        await self.hold(Lease(node, "boss", node.instance))
        self.diary.append(node.epoch)


def test_an_actor_that_holds_a_lease_ends_when_it_is_lost() -> None:
    """`hold` makes the loss a crash, after which a standby acts and the epoch is higher."""

    async def scene(stage: Stage) -> None:
        bucket = moody(stage)
        node, standby = await stage.node("doer", "d0"), await stage.node("doer", "d1")
        serving = asyncio.create_task(node.serve(Holder()))
        await asyncio.sleep(5)
        assert node.epoch > 0
        ready = asyncio.Event()
        taking_over = asyncio.create_task(supervise(Holder, standby, ready=ready))
        await asyncio.sleep(5)
        assert not ready.is_set()
        before, bucket.is_away = node.epoch, True
        with pytest.raises(LeaseLost):
            await serving
        # What it still sends is stamped with the epoch that it lost, or nobody could fence it.
        assert node.epoch == before
        bucket.is_away = False
        await asyncio.wait_for(ready.wait(), 10)
        assert standby.epoch > before
        await standby.drain(1.0)
        await taking_over
        assert await bucket.keys() == []

    play(scene)


def test_a_standby_that_waits_for_its_lease_can_drain() -> None:
    """An actor that has not started yet does not hold up the end."""

    async def scene(stage: Stage) -> None:
        node, standby = await stage.node("doer", "d0"), await stage.node("doer", "d1")
        async with Lease(node, "boss", "someone"):
            serving = asyncio.create_task(standby.serve(Holder()))
            await asyncio.sleep(5)
            await standby.drain(1.0)
            await asyncio.wait_for(serving, 1.0)

    play(scene)


def test_messages_of_the_former_holder_are_fenced() -> None:
    """A holder that was cut off and still talks is not heard once its successor has spoken."""

    class Teller(Actor):
        role = "boss"

        def __init__(self, n: int) -> None:
            self.n = n

        async def on_start(self, node: Node) -> None:
            await self.hold(Lease(node, "boss", node.instance))
            self.every(0.1, lambda: node.tell("doer.d0", Note(self.n)))

        @handles
        async def unused(self, msg: Note, ctx: Context) -> None: ...

    class Stubborn(Teller):
        """Believes in its lease for ever, as a process that was stopped and continued does for a moment."""

        async def on_start(self, node: Node) -> None:
            lease = Lease(node, "boss", node.instance)
            await lease.acquire()
            self.every(0.1, lambda: node.tell("doer.d0", Note(self.n)))

    async def scene(stage: Stage) -> None:
        node, doer, _ = await stage.doer()
        tasks = [asyncio.create_task((await stage.node("boss", "b0")).serve(Stubborn(0)))]
        await asyncio.sleep(1)
        tasks.append(asyncio.create_task((await stage.node("boss", "b1")).serve(Teller(1))))
        await asyncio.sleep(10)
        told = doer.diary[1:]
        assert told == sorted(told)
        assert set(told) == {0, 1}
        assert node.dead_letters["stale-epoch"] > 30
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    play(scene)


def test_memory_buckets_behave_like_the_real_ones() -> None:
    """Revisions grow over the whole bucket, through deletions."""

    async def scene(stage: Stage) -> None:
        bucket = await MemoryTransport(stage.broker).bucket("b")
        first = await bucket.create("a", b"1")
        await bucket.delete("a")
        assert await bucket.create("a", b"2") > first + 1
        assert await bucket.keys() == ["a"]

    play(scene)
