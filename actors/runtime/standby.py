"""A standby: how it notices that the holder of a lease is gone, long before the lease runs out.

A lease must outlast the seconds in which a cluster of stores elects who answers (4 to 9 s with NATS), or the loss of
one server would end every holder; and its successor must not wait that long. So heartbeats decide that a holder is
gone, and the lease arbitrates: it is taken by compare-and-set, and its epoch fences a holder that was only cut off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actors.runtime.heartbeat import HEARTBEAT_S, Alive

if TYPE_CHECKING:
    from actors.runtime.actor import Actor, Context

__all__ = ("LEASE_TTL_S", "Silence")

#: Of a lease that a standby waits for.
LEASE_TTL_S = 15.0
#: As for a death watch, and one more: a holder that comes back from a reconnection is not to find itself replaced.
_MISSED = 6


class Silence:
    """Whether nobody holds a lease, going by the heartbeats of its role. To be given to `Lease`.

    `instance`: only heartbeats of this one count, "" for any of the role. Silence is counted in turns of the event
    loop, not by the clock: a standby that was stopped itself must not take its own pause for the other's.
    """

    def __init__(
        self, role: str, *, instance: str = "", interval_s: float = HEARTBEAT_S, missed: int = _MISSED
    ) -> None:
        self._role = role
        self._instance = instance
        self._interval_s = interval_s
        self._enough = missed
        self._turns = 0

    def __call__(self) -> bool:
        """Silent for long enough, with a connection to hear by."""
        return self._turns >= self._enough

    async def start(self, actor: Actor) -> None:
        """Listen for as long as the actor lives."""
        self._node = actor.node
        await actor.listen(self._role, Alive, self._heard)
        actor.every(self._interval_s, self._turn)

    def _heard(self, alive: Alive, ctx: Context) -> None:
        if alive.epoch and (not self._instance or alive.instance == self._instance):
            self._turns = 0

    async def _turn(self) -> None:
        self._turns = self._turns + 1 if self._node.transport.is_connected else 0
