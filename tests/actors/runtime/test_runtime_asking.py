"""Ask and tell: order, mailboxes, deadlines, crashes. All in virtual time."""

from __future__ import annotations

import asyncio
import math

import pytest
from runtime_stage import (
    Do,
    DoAside,
    Doer,
    Done,
    Explode,
    Note,
    Refuse,
    Relay,
    Stage,
    Stranger,
    play,
)

from actors.runtime import (
    Actor,
    Busy,
    Context,
    Crashed,
    DeadlineExceeded,
    Failed,
    Message,
    MessageTooLarge,
    NoRoute,
    handles,
)


@pytest.mark.parametrize("seed", range(5))
def test_an_ask_is_answered_by_what_the_handler_returns(seed: int) -> None:
    """The reply is the handler's return value, whether asked by name or through the queue group."""

    async def scene(stage: Stage) -> None:
        await stage.doer()
        asker = await stage.node()
        assert await asker.ask("doer.d0", Do(3), want=Done) == Done(3)
        assert await asker.ask("doer.any", Do(4), want=Done) == Done(4)

    play(scene, seed=seed)


@pytest.mark.parametrize("seed", range(10))
def test_tells_are_handled_in_the_order_they_were_sent(seed: int) -> None:
    """Messages of one sender are handled in order, also across plain and coroutine handlers."""

    async def scene(stage: Stage) -> None:
        _, doer, _ = await stage.doer()
        asker = await stage.node()
        await asker.tell("doer.d0", Do(1, 0.01))
        await asker.tell("doer.d0", Note(2))
        asker.tell_soon("doer.d0", Do(3, 0.005))
        await asker.tell("doer.d0", Note(4))
        await asyncio.sleep(1)
        assert doer.diary == ["start", 1, 2, 3, 4]

    play(scene, seed=seed)


def test_one_message_is_handled_at_a_time() -> None:
    """An actor needs no locks: handlers of one actor never overlap."""

    async def scene(stage: Stage) -> None:
        _, doer, _ = await stage.doer()
        asker = await stage.node()
        await asyncio.gather(*(asker.ask("doer.d0", Do(n, 0.1), want=Done) for n in range(4)))
        assert doer.most_at_once == 1

    play(scene)


def test_concurrent_handlers_overlap_and_let_others_through() -> None:
    """`concurrent=True` takes a handler out of the line."""

    async def scene(stage: Stage) -> None:
        _, doer, _ = await stage.doer()
        asker = await stage.node()
        slow = [asyncio.create_task(asker.ask("doer.d0", DoAside(n, 5.0), want=Done)) for n in range(3)]
        await asyncio.sleep(0.1)
        assert await asker.ask("doer.d0", Do(9), want=Done, timeout_s=0.1) == Done(9)
        await asyncio.gather(*slow)
        assert doer.most_at_once == 4

    play(scene)


@pytest.mark.parametrize("work", [Do, DoAside])
def test_a_full_mailbox_answers_busy(work: type[Do] | type[DoAside]) -> None:
    """What does not fit is refused at once, counted, and what fits is served."""

    async def scene(stage: Stage) -> None:
        node, _, _ = await stage.doer()
        asker = await stage.node()
        first = asyncio.create_task(asker.ask("doer.d0", work(0, 1.0), want=Done))
        await asyncio.sleep(0.1)
        rest = await asyncio.gather(
            *(asker.ask("doer.d0", work(n, 1.0), want=Done) for n in range(1, 10)), return_exceptions=True
        )
        await first
        served = [reply for reply in rest if isinstance(reply, Done)]
        # One is being worked on beside a mailbox of four; a concurrent one counts as in the mailbox.
        assert len(served) == (4 if work is Do else 3)
        assert all(isinstance(reply, Busy) for reply in rest if reply not in served)
        assert node.dead_letters["mailbox-full"] == 9 - len(served)

    play(scene)


def test_a_tell_to_a_full_mailbox_is_a_dead_letter_and_shows_as_a_gap() -> None:
    """Nobody is told of a dropped tell, but the next message from the sender says how many are missing."""

    async def scene(stage: Stage) -> None:
        node, doer, _ = await stage.doer()
        asker = await stage.node()
        await asker.tell("doer.d0", Do(0, 1.0))
        await asyncio.sleep(0.1)
        for n in range(1, 8):
            await asker.tell("doer.d0", Note(n))
        await asyncio.sleep(2)
        await asker.tell("doer.d0", Note(8))
        await asyncio.sleep(1)
        assert doer.diary == ["start", 0, 1, 2, 3, 4, 8]
        assert doer.contexts[-1].missed == 3
        assert doer.gaps == [("asker.a0", 3)]
        assert node.dead_letters["mailbox-full"] == 3

    play(scene)


def test_a_deadline_cancels_the_handler_and_is_answered() -> None:
    """Both ends learn of it: the handler is cancelled, the caller gets DeadlineExceeded, and the actor lives."""

    async def scene(stage: Stage) -> None:
        _, doer, _ = await stage.doer()
        asker = await stage.node()
        started = asker.clock()
        with pytest.raises(DeadlineExceeded):
            await asker.ask("doer.d0", Do(1, 5.0), want=Done, timeout_s=0.2)
        assert asker.clock() - started == pytest.approx(0.2, abs=0.01)
        await asyncio.sleep(0.1)
        assert doer.diary == ["start", "cancelled 1"]
        assert await asker.ask("doer.d0", Do(2), want=Done) == Done(2)

    play(scene)


def test_an_expired_message_is_not_handled() -> None:
    """Time in the mailbox counts: what expired there is dropped and answered."""

    async def scene(stage: Stage) -> None:
        node, doer, _ = await stage.doer()
        asker = await stage.node()
        await asker.tell("doer.d0", Do(1, 1.0))
        await asker.tell("doer.d0", Note(2), timeout_s=0.5)
        await asker.tell("doer.d0", Note(3), timeout_s=5.0)
        await asyncio.sleep(2)
        assert doer.diary == ["start", 1, 3]
        assert node.dead_letters["expired"] == 1

    play(scene)


def test_the_remaining_time_is_anchored_to_the_receivers_clock() -> None:
    """A handler sees the time that is left, not an instant of somebody else's clock."""

    async def scene(stage: Stage) -> None:
        _, doer, _ = await stage.doer()
        asker = await stage.node()
        await asyncio.sleep(1000)
        await asker.ask("doer.d0", Do(1), want=Done, timeout_s=2.0)
        await asker.tell("doer.d0", Note(2))
        await asyncio.sleep(0.1)
        asked, told = doer.contexts
        assert asked.deadline - 1000 == pytest.approx(2.0, abs=0.01)
        assert told.remaining_s == math.inf

    play(scene)


def test_what_a_handler_asks_inherits_its_deadline() -> None:
    """Forwarding subtracts: a handler with 0.3 s left cannot wait 60 s for another actor."""

    async def scene(stage: Stage) -> None:
        await stage.doer("d0")
        _, second, _ = await stage.doer("d1")
        asker = await stage.node()
        with pytest.raises(DeadlineExceeded):
            await asker.ask("doer.d0", Relay("doer.d1", 10.0), want=Done, timeout_s=0.3)
        await asyncio.sleep(0.1)
        assert second.diary == ["start", "cancelled 1"]

    play(scene)


@pytest.mark.parametrize("ref", ["doer.d0", "doer.any"])
def test_a_cancelled_ask_cancels_its_handler(ref: str) -> None:
    """A caller that goes away does not leave work behind, running or queued."""

    async def scene(stage: Stage) -> None:
        _, doer, _ = await stage.doer()
        asker = await stage.node()
        running = asyncio.create_task(asker.ask(ref, Do(1, 5.0), want=Done))
        await asyncio.sleep(0.1)
        queued = asyncio.create_task(asker.ask(ref, Do(2, 5.0), want=Done))
        await asyncio.sleep(0.1)
        queued.cancel()
        await asyncio.sleep(0.1)
        running.cancel()
        await asyncio.gather(running, queued, return_exceptions=True)
        assert await asker.ask(ref, Do(3), want=Done, timeout_s=1.0) == Done(3)
        assert doer.diary == ["start", "cancelled 1", 3]

    play(scene)


def test_nobody_there_is_no_route_at_once() -> None:
    """An ask to an address without a subscriber fails without waiting for its timeout."""

    async def scene(stage: Stage) -> None:
        asker = await stage.node()
        with pytest.raises(NoRoute):
            await asker.ask("doer.d9", Do(1), want=Done, timeout_s=60.0)
        assert asker.clock() < 0.1
        assert asker.dead_letters["no-route"] == 1

    play(scene)


def test_a_refusal_reaches_the_caller_and_the_actor_lives() -> None:
    """`Failed` travels with its reason and its retry time."""

    async def scene(stage: Stage) -> None:
        await stage.doer()
        asker = await stage.node()
        with pytest.raises(Failed) as caught:
            await asker.ask("doer.d0", Refuse(), want=Done)
        assert (caught.value.reason, caught.value.detail, caught.value.retry_after_s) == ("no-thanks", "as told", 1.5)
        assert await asker.ask("doer.d0", Do(1), want=Done) == Done(1)

    play(scene)


def test_a_crash_is_told_to_the_caller_and_ends_the_actor() -> None:
    """The one that caused it and the ones queued behind it all learn that the actor crashed."""

    async def scene(stage: Stage) -> None:
        _, doer, serving = await stage.doer()
        asker = await stage.node()
        cause = asyncio.create_task(asker.ask("doer.d0", Explode(), want=Done))
        with pytest.raises(Crashed, match="ZeroDivisionError: as told"):
            await cause
        with pytest.raises(ZeroDivisionError):
            await serving
        assert doer.diary == ["start", "stop"]

    play(scene)


def test_those_in_the_mailbox_of_a_crashed_actor_are_told() -> None:
    """Asks that were waiting get `Crashed`, not a timeout."""

    async def scene(stage: Stage) -> None:
        _, _, serving = await stage.doer()
        asker = await stage.node()
        await asker.tell("doer.d0", Do(1, 0.5))
        await asker.tell("doer.d0", Explode())
        with pytest.raises(Crashed):
            await asker.ask("doer.d0", Do(2), want=Done, timeout_s=60.0)
        assert asker.clock() < 1.0
        with pytest.raises(ZeroDivisionError):
            await serving

    play(scene)


def test_an_unknown_message_is_answered_and_counted() -> None:
    """A message of a tag that the actor does not know is refused as such."""

    async def scene(stage: Stage) -> None:
        node, _, _ = await stage.doer()
        asker = await stage.node()
        with pytest.raises(Failed) as caught:
            await asker.ask("doer.d0", Stranger(), want=Done)
        assert caught.value.reason == "unknown-message"
        assert node.dead_letters["unknown-message"] == 1

    play(scene)


def test_bytes_that_are_no_envelope_are_counted() -> None:
    """Noise on the wire costs a dead letter, not the actor."""

    async def scene(stage: Stage) -> None:
        node, _, _ = await stage.doer()
        asker = await stage.node()
        for noise in (b"", b"\xff\xff", b"\x93\x01\x02\x03"):
            await asker.transport.publish("hg.v1.doer.d0", noise)
        await asyncio.sleep(0.1)
        assert node.dead_letters["undecodable"] == 3
        assert await asker.ask("doer.d0", Do(1), want=Done) == Done(1)

    play(scene)


def test_asking_for_what_has_no_reply_fails() -> None:
    """A handler that returns None handles tells; an ask of it is refused instead of timing out."""

    async def scene(stage: Stage) -> None:
        await stage.doer()
        asker = await stage.node()
        with pytest.raises(Failed, match="no-reply"):
            await asker.ask("doer.d0", Note(1), want=Done)

    play(scene)


def test_a_reply_of_another_type_fails() -> None:
    """`want` is checked."""

    async def scene(stage: Stage) -> None:
        await stage.doer()
        asker = await stage.node()
        with pytest.raises(Failed, match="undecodable"):
            await asker.ask("doer.d0", Do(1), want=Note)

    play(scene)


def test_a_message_too_large_is_refused_before_it_is_sent() -> None:
    """The error says how large, and how large it may be."""

    async def scene(stage: Stage) -> None:
        await stage.doer()
        asker = await stage.node(max_message_bytes=100)
        with pytest.raises(MessageTooLarge) as caught:
            await asker.tell("doer.d0", Relay("x" * 200))
        assert caught.value.size_bytes > caught.value.limit_bytes == 100
        assert await asker.ask("doer.d0", Do(1), want=Done) == Done(1)

    play(scene)


def test_a_queue_group_gives_each_message_to_one_member() -> None:
    """`any` is one of the instances, never two."""

    async def scene(stage: Stage) -> None:
        doers = [(await stage.doer(f"d{n}"))[1] for n in range(3)]
        asker = await stage.node()
        for n in range(30):
            await asker.ask("doer.any", Do(n), want=Done)
        handled = [entry for doer in doers for entry in doer.diary if isinstance(entry, int)]
        assert sorted(handled) == list(range(30))
        assert all(len(doer.diary) > 1 for doer in doers)

    play(scene)


def test_an_address_is_checked() -> None:
    """A reference that is not role.instance is a mistake of the caller, found at once."""

    async def scene(stage: Stage) -> None:
        asker = await stage.node()
        for wrong in ("doer", "doer.d0.x", "doer.*", "doer.>", "", "do er.d0"):
            with pytest.raises(ValueError, match="not an address"):
                await asker.tell(wrong, Note())

    play(scene)


def test_a_handler_must_name_a_message_type() -> None:
    """Mistakes in a declaration are found when the class is made."""
    with pytest.raises(TypeError, match="not a Message type"):

        class _Wrong(Actor):
            @handles
            async def anything(self, msg: int, ctx: Context) -> None: ...

    class Untagged(Message, frozen=True):
        pass

    async def late(self: Actor, msg: Untagged, ctx: Context) -> None: ...

    late.__annotations__["msg"] = Untagged
    with pytest.raises(TypeError, match="no tag"):
        type("_Untagged", (Actor,), {"late": handles(late)})


def test_a_subclass_inherits_and_replaces_handlers() -> None:
    """Handlers follow the class hierarchy."""

    class Louder(Doer):
        @handles
        async def louder(self, msg: Stranger, ctx: Context) -> Done:
            return Done(-1)

    async def scene(stage: Stage) -> None:
        node = await stage.node("doer", "d0")
        await stage.serve(node, Louder())
        asker = await stage.node()
        assert await asker.ask("doer.d0", Stranger(), want=Done) == Done(-1)
        assert await asker.ask("doer.d0", Do(1), want=Done) == Done(1)

    play(scene)


def test_tasks_of_an_actor_end_with_it() -> None:
    """`every` runs at its interval, and not after the actor."""

    class Ticking(Doer):
        async def on_start(self, node: object) -> None:
            self.every(0.5, self.tick)

        async def tick(self) -> None:
            self.diary.append(self.node.clock())

    async def scene(stage: Stage) -> None:
        node = await stage.node("doer", "d0")
        actor = Ticking()
        serving = await stage.serve(node, actor)
        await asyncio.sleep(2.2)
        serving.cancel()
        await asyncio.wait({serving})
        await asyncio.sleep(2)
        assert actor.diary == [pytest.approx(0.5 * n) for n in range(5)] + ["stop"]

    play(scene)
