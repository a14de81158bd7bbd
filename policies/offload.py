"""Copies ahead of need: what a preemption would have to copy is on the host already, so it frees at once.

As blocks become scarce, full blocks of the rows that would give way first are copied, and stay where they are. Full and
acknowledged blocks never change, so a copy is good for as long as its row lives. The link is shared with what must be
copied at once, so this takes no more than a share of it (FastServe's proactive swap; at most a fifth by design).
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import nlargest

from policies.draft import Draft
from policies.giving import Costs, Link
from policies.kv import KvMemory
from policies.preemption import Standing
from policies.rows import Row
from policies.running import Running
from policies.vocabulary import BLOCK_SIZE

__all__ = ["Offload"]

#: Copies begin when fewer than this share of the device blocks are free.
SCARCE = 0.2
#: Rows that are looked at in a step: the next to give way.
_ROWS = 4


class Offload:
    """Adds copies to steps. `tail_first`: a victim gives up its tail before its head, so that is copied first."""

    def __init__(
        self,
        share: float,
        *,
        kv: KvMemory,
        running: Running,
        costs: Costs,
        link: Link,
        standing: Callable[[Row], Standing],
        tail_first: bool,
    ) -> None:
        self.share = share  # of the link; may be changed; 0: nothing is copied
        self._kv = kv
        self._running = running
        self._costs = costs
        self._link = link
        self._standing = standing
        self._tail_first = tail_first
        self._credit = 0.0  # blocks

    def copy(self, draft: Draft, now: float) -> None:
        """The copies of this step, if blocks are scarce. What the share allows carries over to a whole block."""
        kv, running = self._kv, self._running
        if not self.share or kv.supply >= SCARCE * kv.device.size:
            self._credit = 0.0
            return
        allowed = self.share * self._costs.step_s() / self._link.block_s
        self._credit = min(self._credit + allowed, max(1.0, allowed))
        most = min(int(self._credit), kv.host.free)
        if not most:
            return
        rows = [row for row in (*running.decoding, *running.prefilling) if not running.immune(row)]
        for row in nlargest(_ROWS, rows, key=self._standing):
            places = self._places(row, most)
            if places:
                draft.swap_out += kv.copy_out(row, places, draft.number)
                self._link.carry(len(places), now)
                self._credit -= len(places)
                most -= len(places)
            if not most:
                break

    def _places(self, row: Row, most: int) -> list[int]:
        """Up to `most` blocks that are final and have no copy."""
        host, final = row.host_blocks, row.computed // BLOCK_SIZE
        if len(host) == final:
            return []
        places = [place for place in range(final) if place not in host]
        return places[-most:] if self._tail_first else places[:most]
