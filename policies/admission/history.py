"""How long outputs turned out to be, by tenant: what is still to come of a request is a quantile of that.

`max_tokens` is the only hard bound, and clients set it far too high; the lengths of a tenant's last requests,
conditioned on what a request has generated already, are the robust estimate (Past-Future, LightLLM, ASPLOS'25). Until
enough of a tenant's own are known, those of all tenants stand in: its first burst would otherwise be judged by
`max_tokens`, and refused while there is room. Only where these are too few as well is `max_tokens` assumed. The first
lengths of a tenant lean to short ones, since short answers end first; `enough` of them outweigh that soon.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from math import ceil

from policies.vocabulary import RequestLoad

__all__ = ["OutputHistory"]

_NO_BOUND = 1 << 62


class _Window:
    """The last `size` lengths, sorted."""

    __slots__ = ("_recent", "_size", "ordered")

    def __init__(self, size: int) -> None:
        self._size = size
        self._recent: deque[int] = deque()
        self.ordered: list[int] = []

    def add(self, length: int) -> None:
        self._recent.append(length)
        insort(self.ordered, length)
        if len(self._recent) > self._size:
            del self.ordered[bisect_left(self.ordered, self._recent.popleft())]


class OutputHistory:
    """The lengths of the last `window` outputs of each of at most `tenants` tenants (least recently used), and the last
    4 · `window` of all."""

    def __init__(self, *, window: int = 256, tenants: int = 4096, enough: int = 10) -> None:
        self._window, self._tenants, self._enough = window, tenants, enough
        self._own: OrderedDict[str, _Window] = OrderedDict()
        self._all = _Window(4 * window)

    def add(self, tenant: str, outputs: int) -> None:
        """A request of `tenant` ended by itself after `outputs` tokens. Cancelled ones tell nothing: leave them out."""
        own = self._own.get(tenant)
        if own is None:
            own = self._own[tenant] = _Window(self._window)
        self._own.move_to_end(tenant)
        own.add(outputs)
        self._all.add(outputs)
        if len(self._own) > self._tenants:
            self._own.popitem(last=False)

    def remaining(self, tenant: str, generated: int, at_most: int, quantile: float = 0.8) -> int:
        """Outputs still to come, at that quantile of the past lengths above `generated`: the tenant's own where at
        least `enough` are known, else those of all tenants, else `at_most`, which bounds it in any case."""
        enough = self._enough
        for window in (self._own.get(tenant), self._all):
            if window is None:
                continue
            # The quantile with the finite-sample correction; in line, since a forecast asks for every live request.
            ordered = window.ordered
            first = bisect_right(ordered, generated)
            n = len(ordered) - first
            rank = ceil(quantile * (n + 1))
            if n >= enough and rank <= n:
                left = ordered[first + rank - 1] - generated
                return left if left < at_most else at_most
        return at_most

    def of_live(self, tenants: Mapping[str, str], quantile: float) -> Callable[[RequestLoad], int]:
        """`remaining` of live requests, whose `tenants` are given by id. In one call: a forecast asks for every one."""
        own_of, everybody, enough, tenant_of = self._own.get, self._all.ordered, self._enough, tenants.get
        of, fresh = self.remaining, dict[str, int]()

        def remaining(request: RequestLoad) -> int:
            generated, tenant = request.generated, tenant_of(request.id, "")
            if not generated:  # prompts of one tenant are alike
                if tenant not in fresh:
                    fresh[tenant] = of(tenant, 0, _NO_BOUND, quantile)
                left, at_most = fresh[tenant], request.outputs_left
                return left if left < at_most else at_most
            own = own_of(tenant)
            if own is not None:
                ordered = own.ordered
                first = bisect_right(ordered, generated)
                n = len(ordered) - first
                if n >= enough and (rank := ceil(quantile * (n + 1))) <= n:
                    left, at_most = ordered[first + rank - 1] - generated, request.outputs_left
                    return left if left < at_most else at_most
            first = bisect_right(everybody, generated)
            n = len(everybody) - first
            if n >= enough and (rank := ceil(quantile * (n + 1))) <= n:
                left, at_most = everybody[first + rank - 1] - generated, request.outputs_left
                return left if left < at_most else at_most
            return request.outputs_left

        return remaining
