"""What a scheduler remembers of requests: those that are live, and what late questions about the ended ask for.

All of it is soft: what is lost here, the gateways know, and submit again.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque

from actors.messages import UsageSettled
from policies.vocabulary import Finish, Request

__all__ = ["RequestBook"]

#: Ended requests remembered, for late questions about them.
_KEPT_ENDED = 4096
_EVERY_ATTEMPT = 2**31


class RequestBook:
    """O(1) but where it says otherwise. Bounded: by what is live, and by the last 4,096 that ended."""

    def __init__(self) -> None:
        self.live: dict[str, Request] = {}  # the newest attempt; it is served, or waits for a worker
        self.unplaced: deque[str] = deque()  # they wait for a worker
        self.orphans: set[str] = set()  # live, but their gateway died: the scheduler settles
        self._generated: OrderedDict[str, int] = OrderedDict()  # outputs produced, over all attempts, also of the ended
        self._over: OrderedDict[str, int] = OrderedDict()  # attempts up to this one are over, or not wanted any more
        self._served: OrderedDict[str, tuple[str, UsageSettled]] = OrderedDict()  # by which gateway; not settled by us

    def take(self, request: Request) -> bool:
        """It is live from now on. False: doubled, late, or overtaken by its cancel, and nothing changes."""
        live = self.live.get(request.id)
        if request.attempt <= (live.attempt if live else self._over.get(request.id, 0)):
            return False
        self.produced(request.id, len(request.generated) // 4)
        self.live[request.id] = request
        return True

    def attempt(self, request_id: str) -> int:
        """That is live; 0: none."""
        request = self.live.get(request_id)
        return 0 if request is None else request.attempt

    def waiting(self) -> list[Request]:
        """Those that wait for any worker. O(n)."""
        return [self.live[request_id] for request_id in self.unplaced]

    def generated(self, request_id: str) -> int:
        """Outputs that workers are known to have produced for it, over all attempts."""
        return self._generated.get(request_id, 0)

    def produced(self, request_id: str, outputs: int) -> None:
        """So many outputs are known."""
        self._generated[request_id] = max(outputs, self._generated.pop(request_id, 0))
        while len(self._generated) > _KEPT_ENDED + len(self.live):
            self._generated.popitem(last=False)

    def unwanted(self, request_id: str, attempt: int = _EVERY_ATTEMPT) -> None:
        """Attempts up to this one are not to be served (any more)."""
        self._over[request_id] = max(attempt, self._over.pop(request_id, 0))
        if len(self._over) > _KEPT_ENDED:
            self._over.popitem(last=False)

    def ended(self, request: Request, finish: Finish) -> UsageSettled | None:
        """It is over: no longer live. What is to be settled of it here, since its gateway died; else None."""
        self.unwanted(request.id, request.attempt)
        self.live.pop(request.id, None)
        if request.id in self.orphans:
            self.orphans.discard(request.id)
            return self._usage(request, Finish.cancelled)
        self._served[request.id] = request.gateway, self._usage(request, finish)
        if len(self._served) > _KEPT_ENDED:
            self._served.popitem(last=False)
        return None

    def orphaned(self, gateway: str) -> list[str]:
        """That gateway died: its live requests, which are orphans from now on. O(n)."""
        owned = [request.id for request in self.live.values() if request.gateway == gateway]
        self.orphans.update(owned)
        return owned

    def unsettled(self, gateway: str) -> list[UsageSettled]:
        """What ended for that gateway and may have been still unread there. Told once. O(n)."""
        theirs = [usage for owner, usage in self._served.values() if owner == gateway]
        for usage in theirs:
            self._served.pop(usage.request, None)
        return theirs

    def _usage(self, request: Request, finish: Finish) -> UsageSettled:
        return UsageSettled(
            request=request.id,
            prompt_tokens=len(request.prompt) // 4,
            output_tokens=self.generated(request.id),
            cached_tokens=0,
            finish=finish.name,
            attempts=request.attempt,
            settled_unix_s=time.time(),
        )
