"""The NATS server of a stack: its permissions, its configuration, a child process of it, and what must be in it."""

from __future__ import annotations

from headgate.nats.address import open_transport
from headgate.nats.config import Cluster, server_config
from headgate.nats.permissions import PERMISSIONS, Allowed
from headgate.nats.provision import BUCKETS, STREAMS, provision
from headgate.nats.server import NatsServer, NatsServerError, find_binary

__all__ = [
    "BUCKETS",
    "PERMISSIONS",
    "STREAMS",
    "Allowed",
    "Cluster",
    "NatsServer",
    "NatsServerError",
    "find_binary",
    "open_transport",
    "provision",
    "server_config",
]
