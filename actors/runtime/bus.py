"""The readers of the bus: heartbeats and control, to whoever listens."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from actors.runtime.actor import Context
from actors.runtime.message import decode_envelope

if TYPE_CHECKING:
    from actors.runtime.node import Node
    from actors.runtime.transport import Delivered

__all__ = ("Bus",)

_Reader = tuple[msgspec.msgpack.Decoder[Any], Callable[[Any, Context], None]]


class Bus:
    """One subscription a topic, shared by its readers. It stays when they leave: topics are few."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._loop = asyncio.get_running_loop()
        self._readers: dict[str, list[_Reader]] = {}

    async def subscribe(
        self, topic: str, message_type: Any, callback: Callable[[Any, Context], None]
    ) -> Callable[[], None]:
        """See `Node.subscribe`."""
        reader = (msgspec.msgpack.Decoder(message_type), callback)
        if topic in self._readers:
            self._readers[topic].append(reader)
        else:
            self._readers[topic] = [reader]
            await self._node.listen(f"bus.{topic}", self._receiver(topic))

        def leave() -> None:
            if reader in self._readers[topic]:
                self._readers[topic].remove(reader)

        return leave

    def _receiver(self, topic: str) -> Delivered:
        node, readers = self._node, self._readers[topic]

        def receive(subject: str, reply: str, payload: bytes, no_route: bool) -> None:
            try:
                envelope = decode_envelope(payload)
            except msgspec.MsgspecError as error:
                node.dead_letter("undecodable", error=str(error))
                return
            ctx = Context(node, self._loop, envelope.meta, reply="", deadline=math.inf, missed=0)
            for decoder, callback in tuple(readers):
                try:
                    message = decoder.decode(envelope.body)
                except msgspec.MsgspecError:
                    continue  # of another type, and for another reader
                try:
                    callback(message, ctx)
                except Exception:
                    node.log.exception("a reader of the bus raised", topic=topic)

        return receive
