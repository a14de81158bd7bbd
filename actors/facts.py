"""What actors tell on the bus while somebody looks, and only then: at most four times a second, new steps and
decisions since the last time.

A gateway with viewers says so every second. Three seconds after the last such word the telling ends, and costs nothing
until the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from actors.messages import Watching
from actors.runtime import Actor, Context

__all__ = ["Telling"]

#: Between two tellings.
_EVERY_S = 0.25
#: After the last word of a gateway that it has viewers.
_UNWATCHED_S = 3.0


class Telling:
    """Calls `tell(whole)` while somebody looks; `whole`: tell all that is kept, not only what is new."""

    def __init__(self, actor: Actor, tell: Callable[[bool], Awaitable[None]], *, clock: Callable[[], float]) -> None:
        self._actor = actor
        self._tell = tell
        self._clock = clock
        self._until_s = 0.0
        self._whole = False
        self._is_running = False

    async def start(self) -> None:
        """Listen for as long as the actor lives."""
        await self._actor.listen("gateway", Watching, self._heard)

    def _heard(self, watching: Watching, ctx: Context) -> None:
        self._until_s = self._clock() + _UNWATCHED_S
        self._whole |= watching.whole
        if not self._is_running:
            self._is_running = True
            self._actor.spawn(self._go_on())

    async def _go_on(self) -> None:
        while self._clock() < self._until_s:
            whole, self._whole = self._whole, False
            await self._tell(whole)
            await asyncio.sleep(_EVERY_S)
        self._is_running = False
