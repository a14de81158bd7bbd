"""Supervision, draining, heartbeats and death. All in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from runtime_stage import CountTo, Do, DoAside, Doer, Done, Explode, Stage, play

from actors.runtime import (
    Actor,
    Alive,
    Crashed,
    Death,
    DeathWatch,
    Failed,
    Goodbye,
    Node,
    Peer,
    Watch,
    heartbeat,
    simulation,
    supervise,
)
from actors.runtime.simulation import Deadlock
from actors.runtime.supervisor import RestartIntensity


async def until_ready(task: asyncio.Task[None], ready: asyncio.Event) -> None:
    await asyncio.wait_for(ready.wait(), 5)
    assert not task.done()


def test_a_crashed_actor_is_replaced_by_a_fresh_one() -> None:
    """The state that broke is gone, and the next ask is served."""

    async def scene(stage: Stage) -> None:
        node, asker = await stage.node("doer", "d0"), await stage.node()
        made: list[Doer] = []
        ready = asyncio.Event()

        def make() -> Doer:
            made.append(Doer())
            return made[-1]

        task = asyncio.create_task(supervise(make, node, ready=ready))
        await until_ready(task, ready)
        with pytest.raises(Crashed):
            await asker.ask("doer.d0", Explode(), want=Done)
        await asyncio.sleep(0.2)
        assert await asker.ask("doer.d0", Do(1), want=Done) == Done(1)
        assert [actor.diary for actor in made] == [["start", "stop"], ["start", 1]]
        task.cancel()
        await asyncio.wait({task})

    play(scene)


def test_too_many_crashes_end_the_supervision() -> None:
    """Past its intensity the last exception is raised, so that the process ends."""

    class Doomed(Actor):
        role = "doer"
        starts = 0

        async def on_start(self, node: Node) -> None:
            type(self).starts += 1
            raise OSError("no device")

    async def scene(stage: Stage) -> None:
        node = await stage.node("doer", "d0")
        with pytest.raises(OSError, match="no device"):
            await supervise(Doomed, node, max_restarts=3, within_s=60)
        assert Doomed.starts == 4
        assert node.clock() == pytest.approx(0.1 + 0.2 + 0.4)

    play(scene)


def test_restart_intensity_is_a_sliding_window_with_a_growing_pause() -> None:
    """Old crashes are forgiven; the pause doubles up to two seconds."""
    intensity = RestartIntensity(max_restarts=2, within_s=10)
    assert [intensity.crashed(now) for now in (0, 5, 9)] == [True, True, False]
    assert intensity.crashed(19.5) is True
    patient = RestartIntensity(max_restarts=100, within_s=1000)
    pauses = []
    for now in range(7):
        patient.crashed(now)
        pauses.append(patient.backoff_s)
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0])


def test_drain_finishes_what_was_accepted_and_refuses_the_rest() -> None:
    """Leave the queue group, refuse asks, finish, say goodbye, stop; then `serve` returns."""

    async def scene(stage: Stage) -> None:
        node, doer, serving = await stage.doer()
        await stage.doer("d1")
        asker = await stage.node()
        farewells: list[tuple[Goodbye, list[object]]] = []
        await asker.subscribe("doer", Goodbye, lambda message, ctx: farewells.append((message, list(doer.diary))))
        accepted = [asyncio.create_task(asker.ask("doer.d0", Do(n, 1.0), want=Done)) for n in range(3)]
        accepted.append(asyncio.create_task(asker.ask("doer.d0", DoAside(9, 2.0), want=Done)))
        await asyncio.sleep(0.1)
        draining = asyncio.create_task(node.drain(10.0))
        await asyncio.sleep(0.1)
        with pytest.raises(Failed, match="draining"):
            await asker.ask("doer.d0", Do(5), want=Done)
        for n in range(10, 20):
            assert await asker.ask("doer.any", Do(n), want=Done) == Done(n)
        assert sorted(reply.n for reply in await asyncio.gather(*accepted)) == [0, 1, 2, 9]
        await draining
        await serving
        await asyncio.sleep(0.1)
        assert doer.diary[:2] == ["start", "drain"]
        assert doer.diary[-1] == "stop"
        assert [message.instance for message, _ in farewells] == ["d0"]
        # By the time of the goodbye all work was done.
        assert {0, 1, 2, 9} <= set(farewells[0][1])

    play(scene)


def test_drain_is_bounded() -> None:
    """What takes longer than the budget is cancelled and told so."""

    async def scene(stage: Stage) -> None:
        node, doer, serving = await stage.doer()
        asker = await stage.node()
        endless = asyncio.create_task(asker.ask("doer.d0", Do(1, 1000.0), want=Done, timeout_s=2000))
        await asyncio.sleep(0.1)
        await node.drain(1.0)
        assert node.clock() < 3
        with pytest.raises(Failed, match="stopped"):
            await endless
        await serving
        assert doer.diary == ["start", "drain", "cancelled 1", "stop"]

    play(scene)


def test_drain_waits_for_streams() -> None:
    """A stream that was accepted is streamed to its end."""

    async def scene(stage: Stage) -> None:
        node, _, serving = await stage.doer()
        asker = await stage.node()
        stream = asker.stream("doer.d0", CountTo(10, 0.1), want=Done)
        await anext(stream)
        draining = asyncio.create_task(node.drain(10.0))
        assert [item.n async for item in stream] == list(range(2, 11))
        await draining
        await serving

    play(scene)


def test_a_supervised_actor_is_not_restarted_by_a_drain() -> None:
    """Draining ends the supervision without an error."""

    async def scene(stage: Stage) -> None:
        node = await stage.node("doer", "d0")
        ready = asyncio.Event()
        task = asyncio.create_task(supervise(Doer, node, ready=ready))
        await until_ready(task, ready)
        await node.drain(1.0)
        await asyncio.wait_for(task, 1.0)

    play(scene)


class Beating(Doer):
    async def on_start(self, node: Node) -> None:
        heartbeat(self, info=lambda: {"blocks": 7})


class Watching(Actor):
    role = "watcher"

    def __init__(self) -> None:
        self.deaths: list[tuple[float, Death]] = []
        self.seen: list[Peer] = []
        self.watch = Watch("doer", on_death=self.died, on_alive=self.seen.append)

    async def on_start(self, node: Node) -> None:
        await self.watch.start(self)

    def died(self, death: Death) -> None:
        self.deaths.append((self.node.clock(), death))


def test_silence_is_death_after_five_missed_heartbeats() -> None:
    """An actor that stops without a word is declared dead one second after its last heartbeat."""

    async def scene(stage: Stage) -> None:
        watching = Watching()
        await stage.serve(await stage.node("watcher", "w0"), watching)
        node = await stage.node("doer", "d0")
        serving = await stage.serve(node, Beating())
        await asyncio.sleep(3)
        assert watching.watch.living["d0"].info == {"blocks": 7}
        assert watching.deaths == []
        stage.broker.partition({"doer.d0"}, {"watcher.w0"})
        cut = node.clock()
        await asyncio.sleep(3)
        assert [(death.instance, death.reason) for _, death in watching.deaths] == [("d0", "missed")]
        assert 0.8 <= watching.deaths[0][0] - cut <= 1.3
        stage.broker.heal()
        await asyncio.sleep(1)
        assert list(watching.watch.living) == ["d0"]
        serving.cancel()
        await asyncio.wait({serving})

    play(scene)


def test_a_goodbye_is_death_at_once() -> None:
    """Who drains is not waited for."""

    async def scene(stage: Stage) -> None:
        watching = Watching()
        await stage.serve(await stage.node("watcher", "w0"), watching)
        node = await stage.node("doer", "d0")
        await stage.serve(node, Beating())
        await asyncio.sleep(1)
        left = node.clock()
        await node.drain(1.0)
        await asyncio.sleep(0.05)
        assert [death.reason for _, death in watching.deaths] == ["goodbye"]
        assert watching.deaths[0][0] - left < 0.1

    play(scene)


def test_a_restarted_process_is_a_death_of_the_one_before() -> None:
    """A successor under the same name means that what the predecessor knew is gone, even if no heartbeat was missed."""

    async def scene(stage: Stage) -> None:
        watching = Watching()
        await stage.serve(await stage.node("watcher", "w0"), watching)
        first = await stage.serve(await stage.node("doer", "d0"), Beating())
        await asyncio.sleep(1)
        first.cancel()
        await asyncio.wait({first})
        second = await stage.serve(await stage.node("doer", "d0"), Beating())
        await asyncio.sleep(1)
        assert [death.reason for _, death in watching.deaths] == ["epoch"]
        assert list(watching.watch.living) == ["d0"]
        second.cancel()
        await asyncio.wait({second})

    play(scene)


def test_death_watch_decides_by_the_time_it_is_given() -> None:
    """Pure logic: a new epoch is a death, a lower one is a straggler, silence counts from the last heartbeat."""
    watch = DeathWatch(interval_s=0.2, missed=5)
    assert watch.heard("w0", epoch=3, run=1, now_s=0.0) is None
    assert watch.heard("w0", epoch=3, run=1, now_s=0.2) is None
    assert watch.heard("w0", epoch=5, run=2, now_s=0.4) == Death("w0", "epoch", 3, 1)
    assert watch.heard("w0", epoch=3, run=1, now_s=0.6) is None
    assert watch.living["w0"].epoch == 5
    assert watch.goodbye("w0", epoch=3, run=1) is None
    assert watch.check(1.3) == []
    assert watch.check(1.5) == [Death("w0", "missed", 5, 2)]
    assert watch.check(9.0) == []
    # The dead one's last words do not bring it back; a successor's do.
    assert watch.heard("w0", epoch=3, run=1, now_s=9.1) is None
    assert watch.living == {}
    assert watch.heard("w0", epoch=6, run=3, now_s=9.2) is None
    assert watch.goodbye("w0", epoch=6, run=3) == Death("w0", "goodbye", 6, 3)


def test_a_stalled_watcher_does_not_bury_the_living() -> None:
    """After a pause of its own process the watcher first reads what waits before it counts silence."""

    async def scene(stage: Stage) -> None:
        watching = Watching()
        await stage.serve(await stage.node("watcher", "w0"), watching)
        serving = await stage.serve(await stage.node("doer", "d0"), Beating())
        await asyncio.sleep(1)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, simulation.VirtualClockLoop)
        loop.advance(30)
        await asyncio.sleep(2)
        assert watching.deaths == []
        serving.cancel()
        await asyncio.wait({serving})

    play(scene)


def test_silence_while_we_had_no_connection_is_not_death() -> None:
    """Who cannot hear must not conclude: the count begins again once it can."""
    watch = DeathWatch(interval_s=0.2, missed=5)
    watch.heard("w0", epoch=1, run=1, now_s=0.0)
    watch.forgive(5.0)
    assert watch.check(5.9) == []
    assert [death.instance for death in watch.check(6.1)] == ["w0"]


def test_the_bus_reaches_everyone_and_skips_other_types() -> None:
    """Subscribers of a topic get their type; leaving ends it."""

    async def scene(stage: Stage) -> None:
        first, second, sender = [await stage.node("asker", f"a{n}") for n in range(3)]
        heard: list[tuple[str, str]] = []
        leave = await first.subscribe("doer", Alive, lambda m, ctx: heard.append(("first", m.instance)))
        await second.subscribe("doer", Alive, lambda m, ctx: heard.append(("second", m.instance)))
        await sender.publish("doer", Alive("x"))
        await sender.publish("doer", Goodbye("y"))
        await sender.publish("other", Alive("z"))
        await asyncio.sleep(0.1)
        assert sorted(heard) == [("first", "x"), ("second", "x")]
        leave()
        await sender.publish("doer", Alive("w"))
        await asyncio.sleep(0.1)
        assert heard[2:] == [("second", "w")]

    play(scene)


def test_the_virtual_clock_jumps_and_finds_deadlocks() -> None:
    """An hour passes in no time, and waiting for nothing is an error."""

    async def an_hour() -> float:
        await asyncio.gather(*(asyncio.sleep(3600) for _ in range(50)))
        return asyncio.get_running_loop().time()

    assert simulation.run(an_hour()) == pytest.approx(3600)

    async def forever() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        simulation.run(forever())


def test_seeds_give_different_interleavings_and_repeat_them() -> None:
    """The order of what is ready is drawn from the seed."""

    def order(seed: int) -> list[int]:
        seen: list[int] = []

        async def mark(n: int) -> None:
            seen.append(n)

        async def main() -> None:
            await asyncio.gather(*(mark(n) for n in range(8)))

        simulation.run(main(), seed=seed)
        return seen

    assert len({tuple(order(seed)) for seed in range(20)}) > 10
    assert order(7) == order(7)
