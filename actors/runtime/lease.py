"""Leases: one holder at a time, and an epoch that grows with every holder.

A lease is a record in a bucket on disk. Its epoch is the bucket's revision when it was taken, so it only ever grows,
through crashes and restarts of everything. Taking and renewing are compare-and-sets on the revision.

Clocks of two hosts are never compared. The holder counts from when it *began* its last successful renewal, and gives up
after two thirds of the ttl. Whoever waits counts from when it last *saw* the record change, and takes over after a
whole ttl. The latter began later, so there is a third of a ttl between the two; what is still sent in error is fenced
by the epoch. Who hears no heartbeat of the holder (`Silence`), and sees no renewal either, need not wait so long, and
then has the epoch alone between the two, until the holder's next renewal.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

import msgspec

from actors.runtime.errors import ActorError, Conflict, Disconnected, LeaseLost, StoreUnavailable

if TYPE_CHECKING:
    from actors.runtime.node import Node
    from actors.runtime.transport import Bucket

__all__ = ("BUCKET", "Lease")

BUCKET = "leases"

#: However long the ttl: a holder that was replaced learns of it within a second, and who waits looks often.
_RENEW_S = 1.0
_LOOK_S = 0.2
#: A record that did not change for so long was not renewed in time, and may be deserted.
_UNRENEWED_S = 1.5 * _RENEW_S
#: The store's answer to one renewal; in an election it is lost.
_ANSWER_S = 1.0


class _Holding(msgspec.Struct, frozen=True):
    """The record. `nonce` tells our own writes from those of a namesake."""

    holder: str
    nonce: str
    ttl_s: float


class Lease:
    """One attempt to hold `key` as `holder`. Not reusable: take a new one for a new attempt.

    `async with Lease(...) as lease:` waits for it and releases it at the end. If it is lost in between, the body is
    cancelled and `LeaseLost` raised. A record that names the same holder is taken over at once: instances have unique
    names, so it is this one's predecessor, which is dead or about to learn that it is replaced.
    """

    def __init__(
        self,
        node: Node,
        key: str,
        holder: str,
        *,
        ttl_s: float = 3.0,
        is_deserted: Callable[[], bool] = lambda: False,
    ) -> None:
        self.key = key
        self.holder = holder
        self.ttl_s = ttl_s
        #: The fencing token; 0 until acquired.
        self.epoch = 0
        self._node = node
        self._is_deserted = is_deserted
        self._value = msgspec.json.encode(_Holding(holder, secrets.token_hex(8), ttl_s))
        self._bucket: Bucket | None = None
        self._revision = 0
        self._good_until_s = -math.inf
        self._is_lost = False
        self._body: asyncio.Task[object] | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def is_held(self) -> bool:
        """Whether it is ours as far as we know, by our clock."""
        return self.epoch > 0 and not self._is_lost and self._node.clock() < self._good_until_s

    async def acquire(self) -> int:
        """Wait until it is ours; returns the epoch. Keeps trying while the store is away.

        :raises Forbidden: if this role may not use the key.
        """
        seen_revision, seen_s = -1, 0.0
        while self.epoch == 0:
            started_s = self._node.clock()
            with contextlib.suppress(Conflict, StoreUnavailable, Disconnected):
                if self._bucket is None:
                    self._bucket = await self._node.transport.bucket(BUCKET)
                entry = await self._bucket.get(self.key)
                if entry is None:
                    self._taken(await self._bucket.create(self.key, self._value), started_s)
                    break
                if entry.revision != seen_revision:
                    seen_revision, seen_s = entry.revision, self._node.clock()
                before = msgspec.json.decode(entry.value, type=_Holding)
                unchanged_s = self._node.clock() - seen_s
                is_over = unchanged_s >= before.ttl_s or (unchanged_s >= _UNRENEWED_S and self._is_deserted())
                if before.holder == self.holder or is_over:
                    self._taken(await self._bucket.update(self.key, self._value, entry.revision), started_s)
                    break
            await asyncio.sleep(min(self.ttl_s / 10, _LOOK_S))
        return self.epoch

    async def keep(self) -> None:
        """Renew every third of the ttl, or every second, until it is lost. :raises LeaseLost: then."""
        try:
            while True:
                await asyncio.sleep(min(self.ttl_s / 3, _RENEW_S))
                started_s = self._node.clock()
                try:
                    async with asyncio.timeout_at(self._good_until_s):
                        await self._renew(started_s)
                except TimeoutError:
                    seconds = self.ttl_s * 2 / 3
                    raise LeaseLost(f"{self.key} (epoch {self.epoch}) was not renewed for {seconds:.1f} s") from None
                except Conflict as error:
                    raise LeaseLost(f"{self.key} (epoch {self.epoch}) was taken from {self.holder}: {error}") from None
        except LeaseLost:
            self._is_lost = True
            self._node.holds_no_more(self)
            raise

    async def release(self) -> None:
        """Give it back, if it is still ours. Never raises; without a connection it will expire."""
        self._node.holds_no_more(self)
        if self._bucket is None or self.epoch == 0 or self._is_lost:
            return
        self._is_lost = True
        with contextlib.suppress(ActorError, TimeoutError):
            async with asyncio.timeout(min(1.0, self.ttl_s)):
                await self._bucket.delete(self.key, self._revision)

    async def __aenter__(self) -> Self:
        await self.acquire()
        self._body = asyncio.current_task()
        self._keeper = asyncio.create_task(self.keep())
        self._keeper.add_done_callback(self._on_kept)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        keeper, body = self._keeper, self._body
        assert keeper is not None
        assert body is not None
        self._body = None
        if keeper.done() and not keeper.cancelled() and (lost := keeper.exception()) is not None:
            # Cancelled by the loss alone, not from outside as well: then the loss is what there is to say.
            if kind is asyncio.CancelledError and body.uncancel() > 0:
                return
            raise lost
        keeper.cancel()
        await asyncio.wait({keeper})
        await self.release()

    def _on_kept(self, keeper: asyncio.Task[None]) -> None:
        if not keeper.cancelled() and keeper.exception() is not None and self._body is not None:
            self._body.cancel()

    def _taken(self, revision: int, started_s: float) -> None:
        self.epoch = self._revision = revision
        self._good_until_s = started_s + self.ttl_s * 2 / 3
        self._node.holds(self)

    async def _renew(self, started_s: float) -> None:
        """One renewal; retried while the store is away. :raises Conflict: somebody else wrote."""
        assert self._bucket is not None
        while True:
            attempt_s = self._node.clock()
            try:
                async with asyncio.timeout(min(self.ttl_s / 6, _ANSWER_S)):
                    self._revision = await self._bucket.update(self.key, self._value, self._revision)
                self._good_until_s = attempt_s + self.ttl_s * 2 / 3
                return
            except Conflict:
                # Perhaps with an earlier attempt of our own whose answer was lost: then count from the first.
                entry = await self._bucket.get(self.key)
                if entry is None or entry.value != self._value:
                    raise
                self._revision = entry.revision
                self._good_until_s = started_s + self.ttl_s * 2 / 3
                return
            except (ActorError, TimeoutError):
                await asyncio.sleep(min(self.ttl_s / 30, _RENEW_S / 5))
