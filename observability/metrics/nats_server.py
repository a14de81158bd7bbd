"""What NATS servers say of themselves, by their HTTP monitor (`/varz`). Told by the ledger, which runs once a stack.

Little of it, under names of our own: what an operator of Headgate needs. All of it is to be had from NATS's own
exporter.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from observability.metrics.registry import Metrics

__all__ = ["NatsServerMetrics", "Varz"]


class _Storage(msgspec.Struct):
    memory: int = 0
    storage: int = 0


class _JetStream(msgspec.Struct):
    stats: _Storage = msgspec.field(default_factory=_Storage)


class Varz(msgspec.Struct):
    """The answer of /varz, as far as it is used."""

    server_id: str = ""
    server_name: str = ""
    connections: int = 0
    slow_consumers: int = 0
    in_msgs: int = 0
    out_msgs: int = 0
    in_bytes: int = 0
    out_bytes: int = 0
    mem: int = 0
    jetstream: _JetStream = msgspec.field(default_factory=_JetStream)


_GAUGES = (
    ("headgate_nats_server_connections", "Clients of a NATS server.", "connections"),
    ("headgate_nats_server_memory_bytes", "Resident memory of a NATS server.", "mem"),
)
_COUNTERS = (
    ("headgate_nats_server_slow_consumers", "Clients that a NATS server cut off: too slow.", "slow_consumers"),
    ("headgate_nats_server_in_messages", "Messages that a NATS server took.", "in_msgs"),
    ("headgate_nats_server_out_messages", "Messages that a NATS server delivered.", "out_msgs"),
    ("headgate_nats_server_in_bytes", "Bytes of the messages that a NATS server took.", "in_bytes"),
    ("headgate_nats_server_out_bytes", "Bytes of the messages that a NATS server delivered.", "out_bytes"),
)


class NatsServerMetrics:
    """The latest of each server, by the name given here. One that is silent keeps no figures but that it is down."""

    def __init__(self, metrics: Metrics) -> None:
        self._servers: dict[str, Varz | None] = {}
        metrics.add(self)

    def told(self, server: str, varz: Varz | None) -> None:
        """None: it did not answer."""
        self._servers[server] = varz

    def collect(self) -> Iterator[Metric]:
        if not self._servers:
            return  # nobody looks at servers here
        up = GaugeMetricFamily(
            "headgate_nats_server_up", "1 while the monitor of a NATS server answers.", labels=("server",)
        )
        for server, varz in self._servers.items():
            up.add_metric((server,), varz is not None)
        yield up
        known = [(server, varz) for server, varz in self._servers.items() if varz is not None]
        for name, documentation, field in _GAUGES:
            gauge = GaugeMetricFamily(name, documentation, labels=("server",))
            for server, varz in known:
                gauge.add_metric((server,), getattr(varz, field))
            yield gauge
        stored = GaugeMetricFamily(
            "headgate_nats_server_jetstream_bytes", "Bytes that JetStream keeps, by where.", labels=("server", "kind")
        )
        for server, varz in known:
            stored.add_metric((server, "file"), varz.jetstream.stats.storage)
            stored.add_metric((server, "memory"), varz.jetstream.stats.memory)
        yield stored
        for name, documentation, field in _COUNTERS:
            counter = CounterMetricFamily(name, documentation, labels=("server",))
            for server, varz in known:
                counter.add_metric((server,), getattr(varz, field))
            yield counter
