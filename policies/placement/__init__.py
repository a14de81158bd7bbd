"""Which worker takes a request: every rule by name, behind one `Placer`.

placer = Placer("freeness", seed=7)
placer.join("w0", spec)
worker = placer.place(ask_of(request))
placer.submitted(ask, worker)
placer.heard(events)  # of the workers' schedulers
"""

from __future__ import annotations

from policies.placement.best_fit import best_fit, first_token_s, place
from policies.placement.book import Book
from policies.placement.freeness import freeness, virtual_usage
from policies.placement.placer import PLACEMENTS, Placer, Rule
from policies.placement.prefix_aware import Copying, PrefixAware, PrefixChoice
from policies.placement.prefixes import PrefixMap
from policies.placement.ranking import Ranking
from policies.placement.view import PREFIX_SPAN, Ask, WorkerView, ask_of, blocks_of

__all__ = [
    "PLACEMENTS",
    "PREFIX_SPAN",
    "Ask",
    "Book",
    "Copying",
    "Placer",
    "PrefixAware",
    "PrefixChoice",
    "PrefixMap",
    "Ranking",
    "Rule",
    "WorkerView",
    "ask_of",
    "best_fit",
    "blocks_of",
    "first_token_s",
    "freeness",
    "place",
    "virtual_usage",
]
