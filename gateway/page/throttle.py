"""How often one address may try a wrong admin key: a key is not guessed by trying, but neither are the tries free.

Only wrong keys are counted and held back. The right one is not, or whoever reaches the login could keep operators out.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable

__all__ = ["LoginThrottle"]


class LoginThrottle:
    """At most `tries` failures in `window_s` for an address, and in all `max_addresses` of them remembered.

    Beyond that many addresses the one that failed longest ago is forgotten: whoever has so many would not be stopped
    by a longer list either.
    """

    def __init__(
        self,
        *,
        tries: int = 5,
        window_s: float = 60.0,
        max_addresses: int = 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tries = tries
        self._window_s = window_s
        self._max_addresses = max_addresses
        self._clock = clock
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_s(self, address: str) -> float:
        """Seconds until the address may try again; 0 if it may now."""
        failures = self._failures.get(address)
        if failures is None or len(failures) < self._tries:
            return 0.0
        return max(0.0, failures[0] + self._window_s - self._clock())

    def failed(self, address: str) -> None:
        failures = self._failures.setdefault(address, deque(maxlen=self._tries))
        failures.append(self._clock())
        self._failures.move_to_end(address)
        while len(self._failures) > self._max_addresses:
            self._failures.popitem(last=False)

    def succeeded(self, address: str) -> None:
        self._failures.pop(address, None)
