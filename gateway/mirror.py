"""A bucket, mirrored into memory: what an authentication can be answered from without a round trip.

The runtime's watch pushes changes within milliseconds, and survives restarts of the server (it compares itself with the
stream every few seconds). What is added here is the wait for one's own write: who creates a key may use it at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from actors.runtime.transport import Bucket, Watch

__all__ = ["Mirror"]

#: Called with (key, value, or None when it is gone), once for each change.
Apply = Callable[[str, bytes | None], None]


class Mirror:
    """Follows one bucket from `start` to `stop`. `apply` must neither block nor raise."""

    def __init__(self, bucket: Bucket, apply: Apply) -> None:
        self._bucket = bucket
        self._apply = apply
        self._values: dict[str, bytes] = {}
        self._waiting: list[tuple[str, bytes | None, asyncio.Future[None]]] = []
        self._watch: Watch | None = None

    async def start(self) -> None:
        """Returns when everything that the bucket holds is applied. :raises StoreUnavailable: it does not answer."""
        self._watch = await self._bucket.watch(self._told)

    async def stop(self) -> None:
        """Follow it no more; what is known stays. Idempotent."""
        if self._watch is not None:
            await self._watch.close()
            self._watch = None

    async def seen(self, key: str, value: bytes | None, *, timeout_s: float = 1.0) -> bool:
        """Wait until this mirror has the state that was just written; False if it did not come in time."""
        if self._values.get(key) == value:
            return True
        waiting = (key, value, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        try:
            async with asyncio.timeout(timeout_s):
                await waiting[2]
        except TimeoutError:
            return False
        finally:
            self._waiting.remove(waiting)
        return True

    def _told(self, key: str, value: bytes | None) -> None:
        if self._values.get(key) != value:
            if value is None:
                del self._values[key]
            else:
                self._values[key] = value
            self._apply(key, value)
        for wanted, state, future in self._waiting:
            if wanted == key and state == value and not future.done():
                future.set_result(None)
