"""One-for-one supervision: a crashed actor is replaced by a fresh one, until it crashes too often.

Nothing of the dead instance is kept, since whatever broke it may be in its state. When restarts do not help (more than
`max_restarts` within `within_s`), the last exception is raised: the process ends, and whoever supervises processes
takes over.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from actors.runtime.actor import Actor

if TYPE_CHECKING:
    from actors.runtime.node import Node

__all__ = ("RestartIntensity", "supervise")


class RestartIntensity:
    """Counts restarts in a sliding window. Pure: time is an argument."""

    def __init__(self, *, max_restarts: int = 5, within_s: float = 30.0) -> None:
        self._max_restarts = max_restarts
        self._within_s = within_s
        self._crashes: deque[float] = deque()

    def crashed(self, now_s: float) -> bool:
        """Note a crash; returns whether another restart is allowed."""
        self._crashes.append(now_s)
        while now_s - self._crashes[0] > self._within_s:
            self._crashes.popleft()
        return len(self._crashes) <= self._max_restarts

    @property
    def backoff_s(self) -> float:
        """How long to wait before the next restart: 0.1 s, doubling with every recent crash, at most 2 s."""
        return min(2.0, 0.1 * 2.0 ** (len(self._crashes) - 1))


async def supervise(
    factory: Callable[[], Actor],
    node: Node,
    *,
    max_restarts: int = 5,
    within_s: float = 30.0,
    ready: asyncio.Event | None = None,
) -> None:
    """Serve what `factory` makes, and again after each crash. Returns when the node drains.

    `ready` is set when the first instance receives. :raises Exception: the last crash, when restarts are used up.
    """
    loop = asyncio.get_running_loop()
    intensity = RestartIntensity(max_restarts=max_restarts, within_s=within_s)
    while True:
        try:
            await node.serve(factory(), ready=ready)
            return
        except Exception as error:
            if node.is_draining:
                return
            if not intensity.crashed(loop.time()):
                node.log.exception("actor crashed too often, giving up", max_restarts=max_restarts, within_s=within_s)
                raise
            node.log.warning("actor crashed, restarting", backoff_s=intensity.backoff_s, exc_info=error)
        await asyncio.sleep(intensity.backoff_s)
