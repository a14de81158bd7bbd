"""The longest cached prefix against load: where the predicted first token is soonest, hits counted.

Mooncake's conductor rule (2024; FAST'25). For each prefill worker: if the best prefix that any worker has is longer
than its own by more than a factor, the prefix may be copied to it, and its first token comes after the queue, the
transfer and the prefill of the rest; else after the queue and the prefill of what it lacks. The soonest wins. Copies
replicate hot prefixes to more workers; where workers cannot copy, a loaded holder loses to one that computes the prefix
again, which replicates it too.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

from policies.placement.best_fit import equal_until_s
from policies.placement.book import Book
from policies.placement.prefixes import PrefixMap
from policies.placement.ranking import Ranking
from policies.placement.view import PREFIX_SPAN, Ask, WorkerView
from policies.vocabulary import BLOCK_SIZE

__all__ = ["Copying", "PrefixAware", "PrefixChoice"]

#: Looked at: holders, the longest prefixes first, and workers with the shortest queues. A few of each will do.
_HOLDERS, _IDLE = 16, 4


class Copying(NamedTuple):
    """Workers can copy prefixes from each other."""

    seconds_per_token: float
    at_least: float = 2.0  # times as long as one's own, the best prefix must be (Mooncake's balancing threshold)


class PrefixChoice(NamedTuple):
    """A worker, and the prefix that it is to use."""

    worker: str
    cached: int  # tokens that it has, or gets
    source: str  # of a copy; empty: none
    copied: int  # tokens of the copy
    first_token_s: float  # predicted, from now


def _pending(view: WorkerView) -> float:
    return float(view.pending)


class PrefixAware:
    """`span`: tokens to a name of a prefix. `copying` None: workers cannot copy from each other."""

    def __init__(self, book: Book, *, span: int = PREFIX_SPAN, copying: Copying | None = None) -> None:
        self._book = book
        self._span = span
        self._copying = copying
        self._map = PrefixMap()
        self._queues = Ranking(_pending)
        book.listen(changed=self._changed, left=self._left)

    def _changed(self, view: WorkerView) -> None:
        self._queues.touch(view)

    def joined(self, view: WorkerView) -> None:
        """A worker with an empty cache."""
        self._map.join(view.worker, room=max(1, view.spec.blocks * BLOCK_SIZE // self._span))

    def _left(self, worker: str) -> None:
        self._queues.leave(worker)
        self._map.leave(worker)

    def cached(self, ask: Ask, worker: str) -> int:
        """Tokens of the request that `worker` has, at least one short of all."""
        return self._tokens(ask, self._map.spans(worker, ask.prefix))

    def placed(self, ask: Ask, worker: str) -> None:
        """The request is on `worker` now, and so will its prefix be."""
        self._map.note(worker, ask.prefix)

    def choose(self, ask: Ask, accept: Callable[[WorkerView], bool]) -> str | None:
        """The worker of `conduct`."""
        choice = self.conduct(ask, accept)
        return None if choice is None else choice.worker

    def conduct(self, ask: Ask, accept: Callable[[WorkerView], bool]) -> PrefixChoice | None:
        """The acceptable worker with the soonest first token, and where its prefix comes from; None: there is none.

        Among those that are as good, the one with more of the prefix, then the one with less to do.
        """
        views = self._book.views
        spans = dict(islice(self._map.holders(ask.prefix), _HOLDERS))
        source, longest = next(iter(spans.items()), ("", 0))
        options = [views[worker] for worker in spans if accept(views[worker])]
        options += [view for view in self._queues.best(_IDLE, accept) if view.worker not in spans]
        choices = []
        for view in options:
            own = spans.get(view.worker)
            if own is None:
                own = self._map.spans(view.worker, ask.prefix)
            choices.append((self._option(ask, view, own, source, longest), view))
        if not choices:
            return None
        soonest, least = min(choices, key=lambda choice: choice[0].first_token_s)
        bound = equal_until_s(soonest.first_token_s, least.decode_s())
        near = [choice for choice in choices if choice[0].first_token_s <= bound]
        return min(near, key=lambda choice: (-choice[0].cached, choice[1].pending, choice[1].rank))[0]

    def _option(self, ask: Ask, view: WorkerView, own: int, source: str, longest: int) -> PrefixChoice:
        cached = self._tokens(ask, own)
        copying = self._copying
        here_s = view.first_token_s(ask.tokens, cached=cached)
        if copying is not None and longest > own * copying.at_least:
            brought = self._tokens(ask, longest)
            there_s = view.first_token_s(ask.tokens, cached=brought) + (brought - cached) * copying.seconds_per_token
            if there_s < here_s:
                return PrefixChoice(view.worker, brought, source, brought - cached, there_s)
        return PrefixChoice(view.worker, cached, "", 0, here_s)

    def _tokens(self, ask: Ask, spans: int) -> int:
        return max(0, min(spans * self._span, ask.tokens - 1))
