"""What is known of the lengths of outputs: the seam between admission and whoever can tell.

Live, they come from history; experiments also ask what perfect, noisy or no knowledge would be worth.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Protocol

from policies.admission.history import OutputHistory
from policies.admission.verdict import Candidate
from policies.vocabulary import RequestLoad

__all__ = ["HistoryLengths", "MaxTokens", "Oracle", "OutputLengths"]


class OutputLengths(Protocol):
    """Told of every request that begins and ends; asked for the outputs that are still to come."""

    def expected(self, candidate: Candidate, quantile: float) -> int:
        """Outputs of a newcomer, at most its `max_tokens`."""
        ...

    def remaining(self, request: RequestLoad, quantile: float) -> int:
        """Outputs still to come of a live request, at most its `outputs_left`."""
        ...

    def begun(self, request_id: str, tenant: str) -> None:
        """The request is under way."""
        ...

    def ended(self, request_id: str, tenant: str, outputs: int | None) -> None:
        """It is over, after so many `outputs`; None: cut off, which tells nothing."""
        ...


class MaxTokens:
    """Nothing is known: every request uses all that it may."""

    def expected(self, candidate: Candidate, quantile: float) -> int:
        """`max_tokens`."""
        return candidate.max_tokens

    def remaining(self, request: RequestLoad, quantile: float) -> int:
        """All that is left."""
        return request.outputs_left

    def begun(self, request_id: str, tenant: str) -> None:
        """Of no use here."""

    def ended(self, request_id: str, tenant: str, outputs: int | None) -> None:
        """Of no use here."""


class HistoryLengths:
    """A quantile of the tenant's past lengths, given what is generated already: see `OutputHistory`.

    `tenants` has the tenant of every live request, by id.
    """

    def __init__(self, history: OutputHistory | None = None, tenants: Mapping[str, str] = {}) -> None:
        self.history = OutputHistory() if history is None else history
        self._tenants = dict(tenants)

    def expected(self, candidate: Candidate, quantile: float) -> int:
        """Of the candidate's tenant."""
        return self.history.remaining(candidate.tenant, 0, candidate.max_tokens, quantile)

    def remaining(self, request: RequestLoad, quantile: float) -> int:
        """Of the tenant of that request; of all tenants where it is not known."""
        tenant = self._tenants.get(request.id, "")
        return self.history.remaining(tenant, request.generated, request.outputs_left, quantile)

    def of_live(self, quantile: float) -> Callable[[RequestLoad], int]:
        """`remaining` at that quantile, until something begins or ends."""
        return self.history.of_live(self._tenants, quantile)

    def begun(self, request_id: str, tenant: str) -> None:
        """Remember whose it is."""
        self._tenants[request_id] = tenant

    def ended(self, request_id: str, tenant: str, outputs: int | None) -> None:
        """Learn from it."""
        self._tenants.pop(request_id, None)
        if outputs is not None:
            self.history.add(tenant, outputs)


class Oracle:
    """The true lengths, `outputs` by request id, each times exp(N(0, `sigma`)) drawn once for it: for experiments.

    The quantile is of no use to it. A request without an entry uses all that it may.
    """

    def __init__(self, outputs: Mapping[str, int], *, sigma: float = 0.0, seed: int = 0) -> None:
        self._outputs, self._sigma, self._seed = outputs, sigma, seed

    def expected(self, candidate: Candidate, quantile: float) -> int:
        """Its true length, as far as it is known."""
        length = self._length(candidate.id)
        return candidate.max_tokens if length is None else min(length, candidate.max_tokens)

    def remaining(self, request: RequestLoad, quantile: float) -> int:
        """What is left of its true length; one more token where the noise says that it is over already."""
        length = self._length(request.id)
        if length is None:
            return request.outputs_left
        return min(max(1, length - request.generated), request.outputs_left)

    def begun(self, request_id: str, tenant: str) -> None:
        """Of no use here."""

    def ended(self, request_id: str, tenant: str, outputs: int | None) -> None:
        """Of no use here."""

    def _length(self, request_id: str) -> int | None:
        length = self._outputs.get(request_id)
        if length is None or not self._sigma:
            return length
        noise = random.Random(f"{self._seed}/{request_id}").lognormvariate(0.0, self._sigma)
        return max(1, round(length * noise))
