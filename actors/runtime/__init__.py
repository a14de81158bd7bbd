"""The actor runtime over NATS: typed messages, bounded mailboxes, deadlines, supervision, leases."""

from __future__ import annotations

from actors.runtime.actor import Actor, Context, handles
from actors.runtime.errors import (
    ActorError,
    Busy,
    Conflict,
    Crashed,
    DeadlineExceeded,
    Disconnected,
    Failed,
    Forbidden,
    Gap,
    LeaseLost,
    MessageTooLarge,
    NoRoute,
    StoreUnavailable,
)
from actors.runtime.heartbeat import Alive, Death, DeathWatch, Goodbye, Peer, Watch, heartbeat
from actors.runtime.lease import Lease
from actors.runtime.memory import MemoryBroker, MemoryTransport
from actors.runtime.message import Message
from actors.runtime.nats_transport import NatsTransport
from actors.runtime.node import Node
from actors.runtime.standby import LEASE_TTL_S, Silence
from actors.runtime.supervisor import supervise
from actors.runtime.transport import Bucket, Entry, Record, Transport

__all__ = (
    "LEASE_TTL_S",
    "Actor",
    "ActorError",
    "Alive",
    "Bucket",
    "Busy",
    "Conflict",
    "Context",
    "Crashed",
    "DeadlineExceeded",
    "Death",
    "DeathWatch",
    "Disconnected",
    "Entry",
    "Failed",
    "Forbidden",
    "Gap",
    "Goodbye",
    "Lease",
    "LeaseLost",
    "MemoryBroker",
    "MemoryTransport",
    "Message",
    "MessageTooLarge",
    "NatsTransport",
    "NoRoute",
    "Node",
    "Peer",
    "Record",
    "Silence",
    "StoreUnavailable",
    "Transport",
    "Watch",
    "handles",
    "heartbeat",
    "supervise",
)
