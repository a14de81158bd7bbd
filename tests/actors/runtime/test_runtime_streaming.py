"""Streaming replies: order, gaps, back-pressure, cancellation. All in virtual time."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from runtime_stage import CountTo, Do, Done, Stage, play

from actors.runtime import Crashed, DeadlineExceeded, Failed, Gap, MemoryTransport, NoRoute
from actors.runtime.message import Kind, decode_envelope


class LossyTransport(MemoryTransport):
    """Loses the envelopes of a kind and index, once."""

    def __init__(self, *args: object, lose: tuple[Kind, int], **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self._lose: tuple[Kind, int] | None = lose

    def publish_now(self, subject: str, payload: bytes, reply: str = "") -> bool:
        meta = decode_envelope(payload).meta
        if (meta.kind, meta.index) == self._lose:
            self._lose = None
            return True
        return super().publish_now(subject, payload, reply)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("window", [1, 2, 64])
def test_a_stream_is_everything_the_generator_yields_in_order(window: int, seed: int) -> None:
    """Whatever the window, nothing is lost, repeated or swapped."""

    async def scene(stage: Stage) -> None:
        await stage.doer()
        asker = await stage.node()
        got = [item.n async for item in asker.stream("doer.any", CountTo(200), want=Done, window=window)]
        assert got == list(range(1, 201))

    play(scene, seed=seed)


def test_an_empty_stream_ends() -> None:
    """A generator that yields nothing is a loop that does not turn."""

    async def scene(stage: Stage) -> None:
        await stage.doer()
        asker = await stage.node()
        assert [item async for item in asker.stream("doer.d0", CountTo(0), want=Done)] == []

    play(scene)


def test_the_generator_is_at_most_a_window_ahead() -> None:
    """A slow reader holds the generator back."""

    async def scene(stage: Stage) -> None:
        _, doer, _ = await stage.doer()
        asker = await stage.node()
        async with aclosing(asker.stream("doer.d0", CountTo(1000), want=Done, window=8)) as stream:
            await anext(stream)
            await asyncio.sleep(5)
        await asyncio.sleep(0.1)
        # Eight on credit, and one that the generator made before it found it had none left.
        assert doer.diary == ["start", "streamed 9"]

    play(scene)


def test_a_stream_does_not_hold_up_other_messages() -> None:
    """A generator runs beside the mailbox."""

    async def scene(stage: Stage) -> None:
        await stage.doer()
        asker = await stage.node()
        async with aclosing(asker.stream("doer.d0", CountTo(10, 1.0), want=Done, timeout_s=60)) as stream:
            await anext(stream)
            assert await asker.ask("doer.d0", Do(5), want=Done, timeout_s=0.1) == Done(5)

    play(scene)


def test_a_lost_item_is_a_gap() -> None:
    """The reader is told which index is missing, and the generator is cancelled."""

    async def scene(stage: Stage) -> None:
        _, doer, _ = await stage.doer()
        transport = doer.node.transport
        doer.node.transport = LossyTransport(stage.broker, lose=(Kind.ITEM, 3))
        await doer.node.transport.open(role="doer", instance="d0")
        asker = await stage.node()
        got = []
        with pytest.raises(Gap) as caught:  # noqa: PT012
            async for item in asker.stream("doer.d0", CountTo(10, 0.01), want=Done):
                got.append(item.n)  # noqa: PERF401
        assert got == [1, 2]
        assert (caught.value.expected, caught.value.got) == (3, 4)
        await asyncio.sleep(1)
        assert doer.diary == ["start", "streamed 4"]
        doer.node.transport = transport

    play(scene)


@pytest.mark.parametrize(("lose", "expected"), [((Kind.ITEM, 10), 11), ((Kind.END, 10), 11)])
def test_a_lost_end_is_found_out_without_waiting_for_the_deadline(lose: tuple[Kind, int], expected: int) -> None:
    """When the last envelopes are lost nothing further arrives; the reader asks, and learns of it within seconds."""

    async def scene(stage: Stage) -> None:
        _, doer, _ = await stage.doer()
        doer.node.transport = LossyTransport(stage.broker, lose=lose)
        await doer.node.transport.open(role="doer", instance="d0")
        asker = await stage.node()
        with pytest.raises(Gap):
            async for _ in asker.stream("doer.d0", CountTo(10), want=Done, timeout_s=600):
                pass
        assert asker.clock() < 5

    play(scene)


def test_a_lost_credit_is_repeated() -> None:
    """Losing a credit delays a stream, it does not end it."""

    async def scene(stage: Stage) -> None:
        await stage.doer()
        asker = await stage.node()
        asker.transport = LossyTransport(stage.broker, lose=(Kind.CREDIT, 6))
        await asker.transport.open(role="asker", instance="a0")
        got = [item.n async for item in asker.stream("doer.d0", CountTo(20), want=Done, window=4)]
        assert got == list(range(1, 21))

    play(scene)


@pytest.mark.parametrize("seed", range(5))
def test_leaving_the_loop_cancels_the_generator(seed: int) -> None:
    """A `break` reaches the other end without being told to close anything."""

    async def scene(stage: Stage) -> None:
        _, doer, _ = await stage.doer()
        asker = await stage.node()
        async for item in asker.stream("doer.any", CountTo(1000, 0.1), want=Done, timeout_s=600):
            if item.n == 3:
                break
        await asyncio.sleep(1)
        assert doer.diary == ["start", "streamed 3"]

    play(scene, seed=seed)


def test_a_stream_has_one_deadline_for_all_of_it() -> None:
    """Steady progress does not extend the time."""

    async def scene(stage: Stage) -> None:
        _, doer, _ = await stage.doer()
        asker = await stage.node()
        with pytest.raises(DeadlineExceeded):
            async for _ in asker.stream("doer.d0", CountTo(1000, 0.1), want=Done, timeout_s=2.05):
                pass
        await asyncio.sleep(1)
        assert doer.diary == ["start", "streamed 20"]

    play(scene)


def test_a_generator_that_crashes_or_refuses_tells_its_reader() -> None:
    """The items before the error are delivered first."""

    async def scene(stage: Stage) -> None:
        _, _, serving = await stage.doer()
        asker = await stage.node()
        for message, error in ((CountTo(9, refuse_at=4), Failed), (CountTo(9, crash_at=4), Crashed)):
            got = []
            with pytest.raises(error):  # noqa: PT012
                async for item in asker.stream("doer.d0", message, want=Done):
                    got.append(item.n)  # noqa: PERF401
            assert got == [1, 2, 3]
        with pytest.raises(RuntimeError, match="as told"):
            await serving

    play(scene)


def test_a_stream_from_nobody_has_no_route() -> None:
    """As with an ask."""

    async def scene(stage: Stage) -> None:
        asker = await stage.node()
        with pytest.raises(NoRoute):
            async for _ in asker.stream("doer.any", CountTo(1), want=Done):
                pass

    play(scene)
