"""How long KV takes from one worker to another, when several transfers share a worker's link.

A worker has one link out and one link in. Transfers are served first come first served: one waits until both its ends
are free, then has the whole of both. So a transfer's end is known when it is asked for, and no sharing changes it.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Links", "Transfer"]


class Transfer(NamedTuple):
    """KV on its way."""

    begun_s: float
    done_s: float
    bytes: int


class Links:
    """Every worker's links have `bytes_per_s` each way; a transfer needs `latency_s` besides, while which its ends are
    taken too.

    :raises ValueError: if a link would move nothing.
    """

    def __init__(self, bytes_per_s: float, *, latency_s: float = 0.0) -> None:
        if not bytes_per_s > 0 or latency_s < 0:
            raise ValueError(f"{bytes_per_s} bytes/s and {latency_s} s latency: must be positive, and not negative")
        self.bytes_per_s = bytes_per_s
        self.latency_s = latency_s
        self.moved_bytes = 0
        self._out: dict[str, float] = {}  # worker → instant from which its link is free
        self._in: dict[str, float] = {}

    def seconds(self, count: int) -> float:
        """How long so many bytes take on free links."""
        return self.latency_s + count / self.bytes_per_s

    def free_s(self, source: str, destination: str, now: float) -> float:
        """The instant from which both ends are free."""
        return max(now, self._out.get(source, now), self._in.get(destination, now))

    def send(self, source: str, destination: str, count: int, now: float) -> Transfer:
        """Queue `count` bytes. O(1). Instants must not go back."""
        begun = self.free_s(source, destination, now)
        done = begun + self.seconds(count)
        self._out[source] = self._in[destination] = done
        self.moved_bytes += count
        return Transfer(begun, done, count)
