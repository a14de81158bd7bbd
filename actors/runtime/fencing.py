"""What a receiver remembers of its senders: the highest epoch of each lease, and the last sequence number of each.

A lease's epoch grows with every holder, so a message of a lower epoch is from a holder that was replaced and does not
know yet. Core NATS loses messages without telling anyone; the sequence numbers make it known.
"""

from __future__ import annotations

from collections import OrderedDict

from actors.runtime.message import Meta

__all__ = ("Fences", "Sequences")


class Fences:
    """The highest epoch seen of each lease."""

    def __init__(self) -> None:
        self._highest: dict[str, int] = {}

    def admits(self, fence: str, epoch: int) -> bool:
        """Whether a message of this epoch is still to be heard. Epoch 0 (no lease held) always is."""
        if epoch == 0:
            return True
        highest = self._highest.get(fence, 0)
        if epoch > highest:
            self._highest[fence] = epoch
        return epoch >= highest

    def highest(self, fence: str) -> int:
        """The highest epoch seen, 0 for none."""
        return self._highest.get(fence, 0)


class Sequences:
    """The last sequence number of each sender, for one destination."""

    def __init__(self, *, capacity: int = 4096) -> None:
        self._last: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._capacity = capacity

    def missed(self, meta: Meta) -> int:
        """Note a message; returns how many were lost just before it, or -1 if it is a repetition.

        Of a sender never heard before nothing is known to be lost. A known sender that restarts counts from 1 again.
        """
        before = self._last.get(meta.sender)
        self._last[meta.sender] = (meta.run, meta.sequence)
        if before is None:
            if len(self._last) > self._capacity:
                self._last.popitem(last=False)
            return 0
        run, last = before
        if run != meta.run:
            return meta.sequence - 1
        if meta.sequence <= last:
            self._last[meta.sender] = before
            return -1
        return meta.sequence - last - 1
