"""What receivers remember of senders: epochs, sequence numbers, and what a faulty network does to them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from runtime_stage import Do, Done, Loose, Note, Stage, play

from actors.runtime import Failed, Lease, MemoryBroker, MemoryTransport, Node
from actors.runtime.fencing import Fences, Sequences
from actors.runtime.message import Meta


def hold(node: Node, key: str, epoch: int) -> None:
    """Let a node believe that it holds a lease."""
    lease = Lease(node, key, node.name)
    lease.epoch = epoch
    node.lease = lease


def test_a_lower_epoch_of_the_same_lease_is_not_heard() -> None:
    """The one who was replaced is fenced: told so if it asks, dropped if it tells."""

    async def scene(stage: Stage) -> None:
        node, doer, _ = await stage.doer()
        old, new = await stage.node("boss", "b0"), await stage.node("boss", "b1")
        hold(old, "boss", 7)
        hold(new, "boss", 9)
        await old.tell("doer.d0", Note(1))
        await asyncio.sleep(0.1)
        await new.tell("doer.d0", Note(2))
        await asyncio.sleep(0.1)
        await old.tell("doer.d0", Note(3))
        with pytest.raises(Failed) as caught:
            await old.ask("doer.d0", Do(4), want=Done)
        assert caught.value.reason == "stale-epoch"
        await new.tell("doer.d0", Note(5))
        await asyncio.sleep(0.1)
        assert doer.diary == ["start", 1, 2, 5]
        assert node.dead_letters["stale-epoch"] == 2

    play(scene)


def test_leases_do_not_fence_each_other() -> None:
    """Epochs are compared within a lease: another lease's larger number means nothing."""

    async def scene(stage: Stage) -> None:
        _, doer, _ = await stage.doer()
        first, second = await stage.node("boss", "b0"), await stage.node("boss", "b1")
        hold(first, "boss.a", 100)
        hold(second, "boss.b", 5)
        for n in range(4):
            await (first if n % 2 == 0 else second).tell("doer.d0", Note(n))
            await asyncio.sleep(0.1)
        assert doer.diary == ["start", 0, 1, 2, 3]

    play(scene)


def test_a_message_type_may_opt_out_of_fencing() -> None:
    """`fenced = False` is heard whatever its epoch; without a lease everything is."""

    async def scene(stage: Stage) -> None:
        _, doer, _ = await stage.doer()
        old, new, free = [await stage.node("boss", f"b{n}") for n in range(3)]
        hold(old, "boss", 1)
        hold(new, "boss", 2)
        for sender, message in ((new, Note(1)), (old, Loose(2)), (old, Note(3)), (free, Note(4))):
            await sender.tell("doer.d0", message)
            await asyncio.sleep(0.1)
        assert doer.diary == ["start", 1, 2, 4]

    play(scene)


def test_fences_keep_the_highest() -> None:
    """Equal passes, lower does not, zero always does."""
    fences = Fences()
    assert [fences.admits("k", epoch) for epoch in (3, 3, 2, 0, 5, 3)] == [True, True, False, True, True, False]
    assert fences.highest("k") == 5
    assert fences.highest("unknown") == 0


def meta(sender: str, run: int, sequence: int) -> Meta:
    return Meta(0, sender, run, sequence)


def test_sequences_tell_what_is_missing() -> None:
    """Gaps are counted per sender; repetitions are found; a restarted sender counts from one."""
    sequences = Sequences()
    story = [
        (("a", 1, 5), 0),  # first contact: nothing is known
        (("a", 1, 6), 0),
        (("b", 1, 1), 0),
        (("a", 1, 9), 2),
        (("a", 1, 9), -1),
        (("a", 1, 8), -1),
        (("a", 1, 10), 0),
        (("a", 2, 1), 0),  # restarted, and heard from its first message on
        (("a", 3, 4), 3),  # restarted, and three were lost
    ]
    assert [sequences.missed(meta(*heard)) for heard, _ in story] == [missed for _, missed in story]


def test_sequences_forget_the_oldest_senders() -> None:
    """Memory is bounded whoever speaks."""
    sequences = Sequences(capacity=2)
    for sender in ("a", "b", "c"):
        sequences.missed(meta(sender, 1, 1))
    assert sequences.missed(meta("a", 1, 9)) == 0
    assert sequences.missed(meta("c", 1, 9)) == 7


@pytest.mark.parametrize("seed", range(5))
def test_on_a_lossy_network_every_message_is_handled_or_known_to_be_missing(seed: int) -> None:
    """Loss and repetition leave no doubt: handled plus missed is what was sent, in order, each at most once."""

    async def scene(stage: Stage) -> None:
        node, doer, _ = await stage.doer()
        asker = await stage.node()
        for n in range(500):
            await asker.tell("doer.d0", Note(n))
            await asyncio.sleep(0.001)
        stage.broker.drop = stage.broker.duplicate = 0.0
        await asyncio.sleep(0.1)
        await asker.tell("doer.d0", Note(500))
        await asyncio.sleep(0.1)
        handled = doer.diary[1:]
        lost_before_first = handled[0]
        assert handled == sorted(set(handled))
        assert len(handled) < 480
        assert len(handled) + node.missed + lost_before_first == 501
        assert node.dead_letters["duplicate"] > 10

    play(scene, seed=seed, drop=0.1, duplicate=0.1)


def test_a_partition_cuts_both_ways_until_it_heals() -> None:
    """Between islands nothing passes; those in none reach everybody."""

    async def scene(stage: Stage) -> None:
        _, doer, _ = await stage.doer()
        inside, outside, free = [await stage.node("asker", f"a{n}") for n in range(3)]
        stage.broker.partition({"doer.d0", "asker.a0"}, {"asker.a1"})
        for n, sender in enumerate((inside, outside, free)):
            await sender.tell("doer.d0", Note(n))
        await asyncio.sleep(0.1)
        assert sorted(doer.diary[1:]) == [0, 2]
        stage.broker.heal()
        await outside.tell("doer.d0", Note(9))
        await asyncio.sleep(0.1)
        assert doer.diary[-1] == 9

    play(scene)


def test_the_same_seed_gives_the_same_run() -> None:
    """Loss, delay and interleaving are functions of the seed."""

    def story(seed: int) -> list[Any]:
        told: list[Any] = []

        async def scene(stage: Stage) -> None:
            doers = [(await stage.doer(f"d{n}"))[1] for n in range(3)]
            askers = [await stage.node("asker", f"a{n}") for n in range(3)]
            for n in range(60):
                await askers[n % 3].tell("doer.any", Note(n))
            await asyncio.sleep(1)
            told.extend(doer.diary for doer in doers)

        play(scene, seed=seed, drop=0.2, duplicate=0.2, delay_s=(0.0, 0.1))
        return told

    # The broker's own seed is the same in all of them, so that what differs is the interleaving.
    assert story(1) == story(1)


async def test_memory_subjects_match_as_in_nats() -> None:
    """`*` is one token, `>` at least one."""
    broker = MemoryBroker()
    transport = MemoryTransport(broker)
    await transport.open(role="x", instance="y")
    heard: list[tuple[str, str]] = []
    for pattern in ("a.b", "a.*", "a.>", ">", "*.b.c"):
        await transport.subscribe(pattern, lambda subject, *_, p=pattern: heard.append((p, subject)))
    for subject in ("a.b", "a.b.c", "a"):
        await transport.publish(subject, b"")
    await asyncio.sleep(0.05)
    to_ab = [(pattern, "a.b") for pattern in ("a.b", "a.*", "a.>", ">")]
    to_abc = [(pattern, "a.b.c") for pattern in ("a.>", ">", "*.b.c")]
    assert sorted(heard) == sorted([*to_ab, *to_abc, (">", "a")])
