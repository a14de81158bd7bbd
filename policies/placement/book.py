"""The book of who is where: views of all workers of a model, kept up by what is submitted and what schedulers report.

Everything costs O(1) a request and an event. Whoever ranks workers listens to the changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import blake2b

from policies.events import Event, Finished, FirstToken, Scheduled
from policies.placement.view import Ask, WorkerView, blocks_of
from policies.vocabulary import Tier, WorkerSpec

__all__ = ["Book"]


class _Entry:
    __slots__ = ("ask", "queued", "running", "view")

    def __init__(self, ask: Ask, view: WorkerView, queued: int) -> None:
        self.ask, self.view, self.queued = ask, view, queued
        self.running = False


class Book:
    """A request is on one worker at most: submitted again, it is where it was submitted last.

    `used_blocks(worker)`, where it is given, tells the KV blocks that are really held; else they are counted by what
    requests know when they start, which leaves out what they generate.
    """

    def __init__(self, *, seed: int = 0, used_blocks: Callable[[str], int] | None = None) -> None:
        self.views: dict[str, WorkerView] = {}
        self._seed = seed
        self._used_blocks = used_blocks
        self._entries: dict[str, _Entry] = {}
        self._homes: dict[str, set[str]] = {}
        self._changed: list[Callable[[WorkerView], None]] = []
        self._left: list[Callable[[str], None]] = []

    def listen(self, *, changed: Callable[[WorkerView], None], left: Callable[[str], None]) -> None:
        """Hear of every change of a view, and of workers that are gone."""
        self._changed.append(changed)
        self._left.append(left)

    # Workers

    def join(self, worker: str, spec: WorkerSpec) -> None:
        """A worker with nothing on it. One of that name that is known is forgotten first."""
        self.leave(worker)
        chance = blake2b(worker.encode(), digest_size=6, salt=self._seed.to_bytes(8, "big", signed=True)).digest()
        view = WorkerView(worker, spec, rank=int.from_bytes(chance, "big"))
        self.views[worker] = view
        self._homes[worker] = set()
        self._tell(view)

    def leave(self, worker: str) -> None:
        """The worker is gone, with all that was on it. Unknown ones are ignored."""
        if self.views.pop(worker, None) is None:
            return
        for request in self._homes.pop(worker):
            del self._entries[request]
        for left in self._left:
            left(worker)

    def drain(self, worker: str, *, draining: bool = True) -> None:
        """The worker shall get no new requests (or again). Unknown ones are ignored."""
        view = self.views.get(worker)
        if view is not None:
            view.draining = draining
            self._tell(view)

    # Requests

    def home(self, request: str) -> str | None:
        """The worker that has a request."""
        entry = self._entries.get(request)
        return None if entry is None else entry.view.worker

    def submitted(self, ask: Ask, worker: str, *, cached: int = 0) -> None:
        """The request is on `worker` now. `cached`: tokens of it that are expected to be there, or were brought.

        :raises KeyError: if there is no such worker.
        """
        self.ended(ask.id)
        view = self.views[worker]
        queued = max(1, ask.tokens - cached)
        self._entries[ask.id] = _Entry(ask, view, queued)
        self._homes[worker].add(ask.id)
        view.queued += queued
        view.outputs += ask.outputs
        view.waiting[ask.id] = blocks_of(ask.tokens)
        self._tell(view)

    def ended(self, request: str) -> None:
        """The request is over, or not here any more. Unknown ones are ignored."""
        entry = self._entries.pop(request, None)
        if entry is None:
            return
        view, ask = entry.view, entry.ask
        self._homes[view.worker].discard(request)
        view.queued -= entry.queued
        view.outputs -= ask.outputs
        if entry.running:
            view.running -= 1
            view.context -= ask.tokens
            view.priority -= ask.tier == Tier.priority
            view.used_blocks -= blocks_of(ask.tokens)
        else:
            view.waiting.pop(request, None)
        self._tell(view)

    def heard(self, events: Iterable[Event]) -> None:
        """What the schedulers of these workers report."""
        for event in events:
            entry = self._entries.get(event.request)
            if entry is None or entry.ask.attempt != event.attempt:
                continue
            if isinstance(event, Finished):
                self.ended(event.request)
                continue
            if isinstance(event, Scheduled):
                self._started(entry)
                self._queue(entry, min(entry.queued, max(1, entry.ask.tokens - event.cached_tokens)))
            elif isinstance(event, FirstToken):
                self._started(entry)
                self._queue(entry, 0)
            self._tell(entry.view)

    def _started(self, entry: _Entry) -> None:
        """It has a slot. One that is preempted counts as running on: it holds a claim, and comes back first."""
        if entry.running:
            return
        view, ask = entry.view, entry.ask
        entry.running = True
        view.waiting.pop(ask.id, None)
        view.running += 1
        view.context += ask.tokens
        view.priority += ask.tier == Tier.priority
        view.used_blocks += blocks_of(ask.tokens)

    @staticmethod
    def _queue(entry: _Entry, tokens: int) -> None:
        entry.view.queued += tokens - entry.queued
        entry.queued = tokens

    # Views

    def refresh(self, view: WorkerView) -> WorkerView:
        """The view with the blocks that are held by now."""
        if self._used_blocks is not None:
            view.used_blocks = self._used_blocks(view.worker)
        return view

    def _tell(self, view: WorkerView) -> None:
        self.refresh(view)
        for changed in self._changed:
            changed(view)
