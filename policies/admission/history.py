"""How long outputs turned out to be, by tenant: what is still to come of a request is a quantile of that.

`max_tokens` is the only hard bound, and clients set it far too high; the lengths of a tenant's last requests,
conditioned on what a request has generated already, are the robust estimate (Past-Future, LightLLM, ASPLOS'25).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from math import ceil

from policies.vocabulary import RequestLoad

__all__ = ["OutputHistory"]


class OutputHistory:
    """The lengths of the last `window` outputs of each tenant, of at most `tenants` tenants (least recently used)."""

    def __init__(self, *, window: int = 256, tenants: int = 4096, enough: int = 10) -> None:
        self._window, self._tenants, self._enough = window, tenants, enough
        self._recent: OrderedDict[str, tuple[deque[int], list[int]]] = OrderedDict()

    def add(self, tenant: str, outputs: int) -> None:
        """A request of `tenant` ended by itself after `outputs` tokens. Cancelled ones tell nothing: leave them out."""
        recent, ordered = self._recent.setdefault(tenant, (deque(), []))
        self._recent.move_to_end(tenant)
        recent.append(outputs)
        insort(ordered, outputs)
        if len(recent) > self._window:
            del ordered[bisect_left(ordered, recent.popleft())]
        if len(self._recent) > self._tenants:
            self._recent.popitem(last=False)

    def remaining(self, tenant: str, generated: int, at_most: int, quantile: float = 0.8) -> int:
        """Outputs still to come, at that quantile of the past lengths above `generated` (finite-sample corrected).

        `at_most` where fewer than `enough` such lengths are known.
        """
        known = self._recent.get(tenant)
        return at_most if known is None else _remaining(known[1], generated, at_most, quantile, self._enough)

    def estimator(self, tenant_of: Mapping[str, str], quantile: float) -> Callable[[RequestLoad], int]:
        """`remaining` as a function of live requests, whose tenants `tenant_of` knows by request id."""
        recent, enough = self._recent, self._enough

        def remaining(request: RequestLoad) -> int:
            known = recent.get(tenant_of.get(request.id, ""))
            if known is None:
                return request.outputs_left
            return _remaining(known[1], request.generated, request.outputs_left, quantile, enough)

        return remaining


def _remaining(ordered: list[int], generated: int, at_most: int, quantile: float, enough: int) -> int:
    first = bisect_right(ordered, generated)
    n = len(ordered) - first
    rank = ceil(quantile * (n + 1))
    if n < enough or rank > n:
        return at_most
    left = ordered[first + rank - 1] - generated
    return left if left < at_most else at_most
