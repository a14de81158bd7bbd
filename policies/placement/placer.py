"""Placement by name: which worker takes a request.

| name | the worker | source |
| --- | --- | --- |
| round-robin | the next one | |
| least-loaded | the fewest tokens still to be computed or generated | join the shortest queue by tokens: Splitwise |
| prefix-aware | the soonest first token, counting what is cached | Mooncake's conductor |
| best-fit | the one that admission chose; else the soonest first token | ours |
| freeness | the most free memory for each request that runs there | Llumnix |

Under every rule a worker that admission chose is taken while it lives: admission has tested that one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Literal, Protocol

from policies.events import Event
from policies.placement.best_fit import equal_until_s, place
from policies.placement.book import Book
from policies.placement.freeness import freeness
from policies.placement.prefix_aware import Copying, PrefixAware
from policies.placement.ranking import Ranking
from policies.placement.view import PREFIX_SPAN, Ask, WorkerView
from policies.vocabulary import WorkerLoad, WorkerSpec

__all__ = ["PLACEMENTS", "Placer", "Rule"]

PlacementName = Literal["round-robin", "least-loaded", "prefix-aware", "best-fit", "freeness"]
PLACEMENTS: tuple[PlacementName, ...] = ("round-robin", "least-loaded", "prefix-aware", "best-fit", "freeness")

Accept = Callable[[WorkerView], bool]


class Rule(Protocol):
    """Chooses among the workers of a book. It keeps its own order up by what the book tells."""

    def choose(self, ask: Ask, accept: Accept) -> str | None:
        """An acceptable worker; None if there is none."""
        ...


class Placer:
    """Places the requests of one model. Deterministic: equals are ordered by `seed` and the workers' names.

    `report` gives the full load of a worker, for best-fit; without, that rule estimates from views. `used_blocks` as
    for `Book`. `span` and `copying` as for `PrefixAware`. `headroom_blocks`: what freeness keeps free beside the
    priority tier. `place` costs O(log workers), and changes nothing but whose turn it is. A deep copy goes its own way
    (`report` and `used_blocks` being methods of what is copied with it).

    :raises ValueError: if there is no placement of that name.
    """

    def __init__(
        self,
        name: str,
        *,
        seed: int = 0,
        report: Callable[[str], WorkerLoad] | None = None,
        used_blocks: Callable[[str], int] | None = None,
        span: int = PREFIX_SPAN,
        copying: Copying | None = None,
        headroom_blocks: int = 0,
    ) -> None:
        self.name = name
        self.book = book = Book(seed=seed, used_blocks=used_blocks)
        self.prefixes: PrefixAware | None = None
        self._rule: Rule
        if name == "round-robin":
            self._rule = _RoundRobin(book)
        elif name == "least-loaded":
            self._rule = _Least(book, _pending)
        elif name == "freeness":
            self._rule = _Least(book, _Fullness(book, headroom_blocks).of)
        elif name == "prefix-aware":
            self._rule = self.prefixes = PrefixAware(book, span=span, copying=copying)
        elif name == "best-fit":
            self._rule = _SoonestFirstToken(book, report)
        else:
            raise ValueError(f"placement {name!r} is not known; there are {', '.join(PLACEMENTS)}")

    # Workers

    def join(self, worker: str, spec: WorkerSpec) -> None:
        """A worker with nothing on it, and an empty cache."""
        self.book.join(worker, spec)
        if self.prefixes is not None:
            self.prefixes.joined(self.book.views[worker])

    def leave(self, worker: str) -> None:
        """The worker is gone, with all that was on it."""
        self.book.leave(worker)

    def drain(self, worker: str, *, draining: bool = True) -> None:
        """The worker gets no new requests (or again)."""
        self.book.drain(worker, draining=draining)

    # Requests

    def place(self, ask: Ask) -> str | None:
        """The worker for a request; None if all are draining, or there is none.

        Where none could ever hold it, the one with the longest context: its scheduler says what is wrong with it.
        """
        views = self.book.views
        chosen = views.get(ask.worker)
        if chosen is not None and not chosen.draining and chosen.can_hold(ask):
            return ask.worker
        if len(views) == 1:
            (only,) = views.values()
            return None if only.draining else only.worker
        found = self._rule.choose(ask, lambda view: not view.draining and view.can_hold(ask))
        if found is not None:
            return found
        open_to_all = [view for view in views.values() if not view.draining]
        largest = max(open_to_all, key=lambda view: (view.spec.max_context, view.spec.blocks, -view.rank), default=None)
        return None if largest is None else largest.worker

    def submitted(self, ask: Ask, worker: str) -> None:
        """The request is on `worker` now, wherever it was before."""
        cached = 0
        if self.prefixes is not None:
            cached = self.prefixes.cached(ask, worker)
            self.prefixes.placed(ask, worker)
        self.book.submitted(ask, worker, cached=cached)

    def heard(self, events: Iterable[Event]) -> None:
        """What the schedulers of these workers report."""
        self.book.heard(events)

    def ended(self, request: str) -> None:
        """The request is over without a report of it."""
        self.book.ended(request)


def _pending(view: WorkerView) -> float:
    return float(view.pending)


class _Fullness:
    """Freeness, negated: the least is best. Not a closure, so that a copy of a placer looks at its own book."""

    def __init__(self, book: Book, headroom_blocks: int) -> None:
        self._book = book
        self._headroom_blocks = headroom_blocks

    def of(self, view: WorkerView) -> float:
        return -freeness(self._book.refresh(view), headroom_blocks=self._headroom_blocks)


class _RoundRobin:
    """The worker whose last turn is longest ago."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._turns: OrderedDict[str, None] = OrderedDict()
        book.listen(changed=self._changed, left=self._left)

    def _changed(self, view: WorkerView) -> None:
        self._turns.setdefault(view.worker, None)

    def _left(self, worker: str) -> None:
        self._turns.pop(worker, None)

    def choose(self, ask: Ask, accept: Accept) -> str | None:
        for worker in self._turns:
            if accept(self._book.views[worker]):
                self._turns.move_to_end(worker)
                return worker
        return None


class _Least:
    """The worker with the least of a figure."""

    def __init__(self, book: Book, figure: Callable[[WorkerView], float]) -> None:
        self._ranking = Ranking(figure)
        book.listen(changed=self._ranking.touch, left=self._ranking.leave)

    def choose(self, ask: Ask, accept: Accept) -> str | None:
        best = self._ranking.best(1, accept)
        return best[0].worker if best else None


class _SoonestFirstToken:
    """By full reports, of the workers that have least to do."""

    #: Reports cost a microsecond a request, so only so many are asked for.
    LOOKED_AT = 16

    def __init__(self, book: Book, report: Callable[[str], WorkerLoad] | None) -> None:
        self._book = book
        self._report = report
        self._ranking = Ranking(_pending)
        book.listen(changed=self._ranking.touch, left=self._ranking.leave)

    def choose(self, ask: Ask, accept: Accept) -> str | None:
        views = self._ranking.best(self.LOOKED_AT, accept)
        if self._report is not None:
            return place(ask, [self._report(view.worker) for view in views])
        if not views:
            return None
        waits = [(view.first_token_s(ask.tokens), view) for view in views]
        soonest, least = min(waits, key=lambda wait: (wait[0], wait[1].rank))
        bound = equal_until_s(soonest, least.decode_s())
        return min((view.pending, view.rank, view.worker) for wait, view in waits if wait <= bound)[2]
