"""From a received envelope to a message for a handler, or to the reason why it never gets to one."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from actors.runtime.actor import Actor, Context, Handler
from actors.runtime.errors import ActorError, DeadlineExceeded, Failed
from actors.runtime.fencing import Sequences
from actors.runtime.message import Message, Meta, tag_of, wire_tag

if TYPE_CHECKING:
    from actors.runtime.node import Node

__all__ = ("Opened", "Opener", "Parcel")


class Parcel(NamedTuple):
    """A message that waits; decoded only when its turn comes."""

    meta: Meta
    body: msgspec.Raw
    reply: str
    arrived_s: float
    is_direct: bool


class Opened(NamedTuple):
    """A message that is to be handled."""

    handler: Handler
    message: Message
    ctx: Context

    @property
    def reply(self) -> str:
        """Where the answer goes, "" for none."""
        return self.ctx.reply


class Opener:
    """Checks sequence, deadline, type and epoch, in this order, and refuses what fails."""

    def __init__(self, node: Node, actor: Actor) -> None:
        self._node = node
        self._actor = actor
        self._loop = asyncio.get_running_loop()
        self._decoder = actor.decoder()
        self._known_tags = {tag_of(message_type) for message_type in actor.handlers}
        self._sequences = Sequences()

    def open(self, parcel: Parcel) -> Opened | None:
        """The message with its handler; None if it was dropped, which is counted, and answered if somebody waits."""
        node, meta, missed = self._node, parcel.meta, 0
        if parcel.is_direct:
            missed = self._sequences.missed(meta)
            if missed < 0:
                self._drop("duplicate", parcel)
                return None
            if missed:
                node.missed += missed
                self._actor.on_gap(meta.sender, missed)
        deadline_s = math.inf if meta.remaining_s is None else parcel.arrived_s + meta.remaining_s
        if deadline_s <= self._loop.time():
            self._drop("expired", parcel, DeadlineExceeded(f"expired in the mailbox of {node.name}"))
            return None
        try:
            message = self._decoder.decode(parcel.body)
        except msgspec.MsgspecError as error:
            tag = wire_tag(parcel.body)
            reason = "undecodable" if tag is None or tag in self._known_tags else "unknown-message"
            self._drop(reason, parcel, Failed(reason, f"{tag}: {error}"))
            return None
        if meta.epoch and not node.fences.admits(meta.fence, meta.epoch) and message.fenced:
            detail = f"{meta.fence} is at epoch {node.fences.highest(meta.fence)}, this is from {meta.epoch}"
            self._drop("stale-epoch", parcel, Failed("stale-epoch", detail))
            return None
        ctx = Context(node, self._loop, meta, reply=parcel.reply, deadline=deadline_s, missed=missed)
        return Opened(self._actor.handlers[type(message)], message, ctx)

    def _drop(self, reason: str, parcel: Parcel, error: ActorError | None = None) -> None:
        self._node.dead_letter(reason, sender=parcel.meta.sender, error=str(error))
        if error is not None and parcel.reply:
            self._node.refuse(parcel.reply, error)
