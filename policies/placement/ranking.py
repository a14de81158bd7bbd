"""The best of many by a figure that changes: a heap that forgives.

Entries are written anew when a figure changes and thrown away when they come up old. A figure that grew without anybody
telling (KV grows with every step) is noticed when its entry comes up: so only changes for the better need telling.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush

from policies.placement.view import WorkerView

__all__ = ["Ranking"]

#: The least is best; the second orders equals.
Key = tuple[float, float]


class Ranking:
    """Workers by `figure`, the least first. Telling and asking cost O(log workers), amortised."""

    def __init__(self, figure: Callable[[WorkerView], float]) -> None:
        self._figure = figure
        self._heap: list[tuple[float, float, str]] = []
        self._views: dict[str, WorkerView] = {}
        self._current: dict[str, Key] = {}

    def touch(self, view: WorkerView) -> None:
        """The worker is new, or its figure may have changed."""
        key = (self._figure(view), view.rank)
        self._views[view.worker] = view
        if self._current.get(view.worker) != key:
            self._push(view.worker, key)

    def leave(self, worker: str) -> None:
        """The worker is gone."""
        self._views.pop(worker, None)
        self._current.pop(worker, None)

    def best(self, most: int, accept: Callable[[WorkerView], bool]) -> list[WorkerView]:
        """The first `most` that are acceptable, best first. Those that are not cost as much as those that are."""
        found: list[WorkerView] = []
        taken: list[tuple[float, float, str]] = []
        heap, current = self._heap, self._current
        while heap and len(found) < most:
            entry = heappop(heap)
            worker = entry[2]
            if current.get(worker) != entry[:2]:
                continue
            view = self._views[worker]
            key = (self._figure(view), view.rank)
            if key > entry[:2]:
                current[worker] = key
                heappush(heap, (*key, worker))
                continue
            taken.append(entry)
            if accept(view):
                found.append(view)
        for entry in taken:
            heappush(heap, entry)
        return found

    def _push(self, worker: str, key: Key) -> None:
        self._current[worker] = key
        heappush(self._heap, (*key, worker))
        if len(self._heap) > 4 * len(self._current) + 64:
            self._heap = [(*key, worker) for worker, key in self._current.items()]
            heapify(self._heap)
