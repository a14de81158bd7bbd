"""What an actor could tell of requests that were not sampled, for as long as somebody may still want to know.

Which trace matters is known at its end: the request was late, it failed, it was preempted. Until then its spans are
plain facts that the actors have anyway; they are held here, bounded, and become spans only when they are asked for. See
docs/adr/0007-traces-are-kept-for-what-matters.md.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

__all__ = ["HeldSpans"]

Record = Callable[[], object]


class HeldSpans:
    """At most `limit` requests, the oldest forgotten first. Not thread-safe.

    What comes after it was asked for is recorded at once: whoever asks may be faster than who holds.
    """

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        self._held: OrderedDict[str, tuple[Record, ...]] = OrderedDict()
        self._wanted: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, request_id: str, record: Record) -> None:
        """Call `record()` if this request is kept, now or later. A request may hold several."""
        if request_id in self._wanted:
            record()
            return
        earlier = self._held.pop(request_id, ())
        self._held[request_id] = (*earlier, record)
        if len(self._held) > self._limit:
            self._held.popitem(last=False)

    def keep(self, request_ids: Iterable[str]) -> None:
        """Record what is held of these requests, and what is still to come of them."""
        for request_id in request_ids:
            for record in self._held.pop(request_id, ()):
                record()
            self._wanted[request_id] = None
            if len(self._wanted) > self._limit:
                self._wanted.popitem(last=False)
