"""Who is alive: heartbeats, goodbyes, and the decision that somebody is dead.

Heartbeats on the bus decide about death, not the lease and not a watch on it: a key-value watch can die without a word,
and a lease is slow. A peer is dead when five heartbeats in a row did not come, when it came back with another epoch (it
lost what it knew), or when it said goodbye. `DeathWatch` is the decision, with time as an argument; `Watch` listens for
it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from actors.runtime.message import Message

if TYPE_CHECKING:
    from actors.runtime.actor import Actor, Context

__all__ = ("HEARTBEAT_S", "Alive", "Death", "DeathWatch", "Goodbye", "Peer", "Watch", "heartbeat")

HEARTBEAT_S = 0.2


class Alive(Message, frozen=True, tag="alive"):
    """I live. `info` is for whoever watches: load, what is loaded, free blocks."""

    instance: str
    epoch: int = 0
    info: dict[str, Any] = msgspec.field(default_factory=dict)


class Goodbye(Message, frozen=True, tag="goodbye"):
    """I leave in good order; nobody needs to wait for missed heartbeats."""

    instance: str
    epoch: int = 0


@dataclass(frozen=True)
class Death:
    """Somebody is gone. `reason`: missed, epoch or goodbye; `epoch` and `run` are those of the one who died."""

    instance: str
    reason: str
    epoch: int
    run: int


@dataclass
class Peer:
    """What is known of somebody alive."""

    instance: str
    epoch: int
    run: int
    last_heard_s: float
    info: dict[str, Any] = field(default_factory=dict)


class DeathWatch:
    """Keeps the living of one role. Not bound to a clock: every method takes the time."""

    def __init__(self, *, interval_s: float = HEARTBEAT_S, missed: int = 5) -> None:
        self._silence_s = interval_s * missed
        self.living: dict[str, Peer] = {}
        self._buried: dict[str, int] = {}

    def heard(
        self, instance: str, *, epoch: int, run: int, now_s: float, info: dict[str, Any] | None = None
    ) -> Death | None:
        """A heartbeat came. Returns the death of the one before, if this is a successor under the same name.

        A lower epoch than known is a straggler and changes nothing.
        """
        before = self.living.get(instance)
        if epoch < max(before.epoch if before else 0, self._buried.get(instance, 0)):
            return None
        self.living[instance] = Peer(instance, epoch, run, now_s, info or {})
        if before is None or (before.epoch, before.run) == (epoch, run):
            return None
        return Death(instance, "epoch", before.epoch, before.run)

    def goodbye(self, instance: str, *, epoch: int, run: int) -> Death | None:
        """A goodbye came. Returns the death, unless it is not the one who is known."""
        peer = self.living.get(instance)
        if peer is None or peer.run != run or epoch < peer.epoch:
            return None
        return self._bury(peer, "goodbye")

    def check(self, now_s: float) -> list[Death]:
        """The deaths by silence until now."""
        silent = [peer for peer in self.living.values() if now_s - peer.last_heard_s >= self._silence_s]
        return [self._bury(peer, "missed") for peer in silent]

    def forgive(self, now_s: float) -> None:
        """Count the silence of everybody from now on: it was ours, there was no connection to hear them by."""
        for peer in self.living.values():
            peer.last_heard_s = now_s

    def _bury(self, peer: Peer, reason: str) -> Death:
        del self.living[peer.instance]
        if peer.epoch:
            self._buried[peer.instance] = peer.epoch
        return Death(peer.instance, reason, peer.epoch, peer.run)


class Watch:
    """Follows the heartbeats of a role for one actor.

    `on_death(death)` and `on_alive(peer)` are called on the event loop and must not wait; `on_alive` for every
    heartbeat, after the death of a predecessor was told.
    """

    def __init__(
        self,
        role: str,
        *,
        on_death: Callable[[Death], None],
        on_alive: Callable[[Peer], None] = lambda peer: None,
        interval_s: float = HEARTBEAT_S,
        missed: int = 5,
    ) -> None:
        self._role = role
        self._interval_s = interval_s
        self._on_death = on_death
        self._on_alive = on_alive
        self._watch = DeathWatch(interval_s=interval_s, missed=missed)

    @property
    def living(self) -> dict[str, Peer]:
        """Everyone of the role who is alive, by instance."""
        return self._watch.living

    async def start(self, actor: Actor) -> None:
        """Listen for as long as the actor lives."""
        node = actor.node
        await actor.listen(self._role, Alive, self._heard)
        await actor.listen(self._role, Goodbye, self._left)
        self._checked_s = node.clock()

        async def check() -> None:
            now_s = node.clock()
            if not node.transport.is_connected:
                self._watch.forgive(now_s)
            # After a pause of our own (a stall, SIGSTOP) heartbeats wait unread: give them one turn before counting.
            if now_s - self._checked_s < 3 * self._interval_s:
                for death in self._watch.check(now_s):
                    self._on_death(death)
            self._checked_s = now_s

        actor.every(self._interval_s, check)

    def _heard(self, message: Alive, ctx: Context) -> None:
        death = self._watch.heard(
            message.instance, epoch=message.epoch, run=ctx.run, now_s=ctx.node.clock(), info=message.info
        )
        if death is not None:
            self._on_death(death)
        peer = self._watch.living.get(message.instance)
        if peer is not None and peer.run == ctx.run:
            self._on_alive(peer)

    def _left(self, message: Goodbye, ctx: Context) -> None:
        death = self._watch.goodbye(message.instance, epoch=message.epoch, run=ctx.run)
        if death is not None:
            self._on_death(death)


def heartbeat(actor: Actor, *, interval_s: float = HEARTBEAT_S, info: Callable[[], dict[str, Any]] = dict) -> None:
    """Let an actor say on the bus, under its role as the topic, that it lives."""
    node = actor.node

    async def beat() -> None:
        await node.publish(node.role, Alive(node.instance, node.epoch, info()))

    actor.every(interval_s, beat)
