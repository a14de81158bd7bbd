"""Which worker has which prefixes, as far as whoever places requests can know: from what it placed there.

Workers do not report their caches, and need not: what a worker was sent it has computed, and drops least recently used
first. The map forgets by the same rule, for a cache of the worker's size (the approximate tree of SGLang's router).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence

__all__ = ["PrefixMap"]


class PrefixMap:
    """Names of spans, each standing for all before it too; `room` spans to a worker."""

    def __init__(self) -> None:
        self._holders: dict[Hashable, dict[str, None]] = {}
        self._kept: dict[str, OrderedDict[Hashable, None]] = {}
        self._room: dict[str, int] = {}

    def join(self, worker: str, *, room: int) -> None:
        """A worker whose cache is empty, of `room` spans."""
        self.leave(worker)
        self._kept[worker] = OrderedDict()
        self._room[worker] = room

    def leave(self, worker: str) -> None:
        """The worker is gone, or has lost its cache."""
        for name in self._kept.pop(worker, ()):
            self._drop(name, worker)
        self._room.pop(worker, None)

    def note(self, worker: str, names: Sequence[Hashable]) -> None:
        """A request with these leading spans went to `worker`."""
        kept = self._kept[worker]
        for name in reversed(names):  # so that a tail goes before what it stands on
            if name in kept:
                kept.move_to_end(name)
            else:
                kept[name] = None
                self._holders.setdefault(name, {})[worker] = None
        while len(kept) > self._room[worker]:
            self._drop(kept.popitem(last=False)[0], worker)

    def _drop(self, name: Hashable, worker: str) -> None:
        holders = self._holders[name]
        del holders[worker]
        if not holders:
            del self._holders[name]

    def spans(self, worker: str, names: Sequence[Hashable]) -> int:
        """How many leading spans `worker` has.

        :raises KeyError: if there is no such worker.
        """
        kept = self._kept[worker]
        count = 0
        for name in names:
            if name not in kept:
                break
            count += 1
        return count

    def holders(self, names: Sequence[Hashable]) -> Iterator[tuple[str, int]]:
        """Workers with the number of leading spans that each has, the longest first; none twice."""
        levels: list[dict[str, None]] = []
        for name in names:
            holders = self._holders.get(name)
            if not holders:
                break
            levels.append(holders)
        seen: set[str] = set()
        for depth in range(len(levels), 0, -1):
            for worker in levels[depth - 1]:
                if worker not in seen:
                    seen.add(worker)
                    yield worker, depth
