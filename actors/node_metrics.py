"""What a process knows of its own place among the actors: its mailbox, what it lost, its connection, its lease.

Asked for at each scrape; nothing is counted for it that is not counted anyway.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from actors.runtime import Node

__all__ = ["DEAD_LETTERS", "NodeMetrics"]

#: Why a message is handled by nobody. See `Node.dead_letters`.
DEAD_LETTERS = (
    "duplicate",
    "expired",
    "late-reply",
    "mailbox-full",
    "no-route",
    "refused",
    "stale-epoch",
    "undecodable",
    "unknown-message",
    "unsent",
)
_ACTOR = ("actor",)


class NodeMetrics:
    """A collector for the registry of the process. `actor` is its role."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._reconnects = 0
        node.transport.on_reconnect(self._reconnected)

    def _reconnected(self) -> None:
        self._reconnects += 1

    def collect(self) -> Iterator[Metric]:
        node = self._node
        role = (node.role,)
        dead = CounterMetricFamily(
            "headgate_dead_letters", "Messages that nobody handled, by reason.", labels=("actor", "reason")
        )
        for reason in sorted({*DEAD_LETTERS, *node.dead_letters}):
            dead.add_metric((node.role, reason), node.dead_letters[reason])
        yield dead
        refused = CounterMetricFamily(
            "headgate_mailbox_refused", "Messages answered Busy: mailbox full.", labels=_ACTOR
        )
        refused.add_metric(role, node.dead_letters["mailbox-full"])
        yield refused
        missed = CounterMetricFamily(
            "headgate_messages_missed", "Messages lost on their way here, as their numbers tell.", labels=_ACTOR
        )
        missed.add_metric(role, node.missed)
        yield missed
        depth = GaugeMetricFamily(
            "headgate_mailbox_depth", "Messages in the mailbox, those at work too.", labels=_ACTOR
        )
        capacity = GaugeMetricFamily("headgate_mailbox_capacity", "Messages that the mailbox holds.", labels=_ACTOR)
        for actor, held, most in node.mailboxes:
            depth.add_metric((actor,), held)
            capacity.add_metric((actor,), most)
        yield depth
        yield capacity
        reconnects = CounterMetricFamily("headgate_nats_reconnects", "Connections to NATS made again.", labels=_ACTOR)
        reconnects.add_metric(role, self._reconnects)
        yield reconnects
        connected = GaugeMetricFamily(
            "headgate_nats_connected", "1 while there is a connection to NATS.", labels=_ACTOR
        )
        connected.add_metric(role, node.transport.is_connected)
        yield connected
        epoch = GaugeMetricFamily(
            "headgate_lease_epoch", "Epoch of the latest lease held here; 0: none yet, as of a standby.", labels=_ACTOR
        )
        epoch.add_metric(role, node.epoch)
        yield epoch
