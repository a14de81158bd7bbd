"""An event loop on a virtual clock, to test hours of timeouts in milliseconds and to replay interleavings by seed.

The selector never blocks: when nothing is ready, time jumps to the next timer. When there is no timer either, nothing
can ever happen again, and that is reported as `Deadlock`. With a seed the ready queue is shuffled before every turn, so
that orders which asyncio happens never to produce are tested too, and the same seed gives the same order again. Real
sockets and threads do not fit: use `MemoryTransport`.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ("Deadlock", "VirtualClockLoop", "run")

T = TypeVar("T")


class Deadlock(RuntimeError):
    """Every task waits, and no timer is set."""


class _InstantSelector(selectors.SelectSelector):
    """Advances the loop's clock instead of waiting."""

    loop: VirtualClockLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock(f"nothing is ready and no timer is set at {self.loop.time():.3f} s of virtual time")
        if timeout > 0:
            self.loop.advance(timeout)
        return []


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """`time()` starts at 0 and passes only when everybody waits."""

    def __init__(self, *, seed: int | None = None) -> None:
        selector = _InstantSelector()
        selector.loop = self
        self._virtual_now = 0.0
        self._shuffler = None if seed is None else random.Random(seed)
        super().__init__(selector)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._virtual_now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._virtual_now += seconds

    def _run_once(self) -> None:
        if self._shuffler is not None and len(self._ready) > 1:  # type: ignore[attr-defined]
            ready = list(self._ready)  # type: ignore[attr-defined]
            self._shuffler.shuffle(ready)
            self._ready.clear()  # type: ignore[attr-defined]
            self._ready.extend(ready)  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def run(main: Coroutine[Any, Any, T], *, seed: int | None = None) -> T:
    """Run a coroutine to its end in virtual time.

    :raises Deadlock: if it waits for something that can never happen.
    """
    with asyncio.Runner(loop_factory=lambda: VirtualClockLoop(seed=seed)) as runner:
        return runner.run(main)
