"""Who may say what on NATS: one user per role, and deny by default.

A role may do what `PERMISSIONS` says, and nothing else. The embedded server and the configuration files of
`headgate secrets` are both made from it.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["PERMISSIONS", "Allowed"]


class Allowed(NamedTuple):
    """Subjects a role may publish to and subscribe to."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def _tells(*roles: str) -> tuple[str, ...]:
    """Ask and tell instances of these roles."""
    return tuple(f"hg.v1.{role}.*" for role in roles)


def _answers(*roles: str) -> tuple[str, ...]:
    """Reply to these roles."""
    return tuple(f"_R.{role}.>" for role in roles)


def _reads(*buckets: str) -> tuple[str, ...]:
    """Get from these buckets, list and watch them."""
    return tuple(
        subject
        for bucket in buckets
        for subject in (
            f"$JS.API.STREAM.INFO.KV_{bucket}",
            f"$JS.API.DIRECT.GET.KV_{bucket}.>",
            f"$JS.API.STREAM.MSG.GET.KV_{bucket}",
            f"$JS.API.CONSUMER.CREATE.KV_{bucket}",
            f"$JS.API.CONSUMER.CREATE.KV_{bucket}.>",
            f"$JS.API.CONSUMER.INFO.KV_{bucket}.>",
            f"$JS.API.CONSUMER.DELETE.KV_{bucket}.>",
            f"$JS.FC.KV_{bucket}.>",
        )
    )


def _writes(*buckets: str) -> tuple[str, ...]:
    return tuple(f"$KV.{bucket}.>" for bucket in buckets)


def _leases(role: str) -> tuple[str, ...]:
    """Hold leases whose key begins with the role."""
    return (
        "$JS.API.STREAM.INFO.KV_leases",
        "$JS.API.DIRECT.GET.KV_leases.>",
        "$JS.API.STREAM.MSG.GET.KV_leases",
        f"$KV.leases.{role}.>",
    )


def _appends(*streams: str) -> tuple[str, ...]:
    return tuple(f"hg.{stream}.>" for stream in streams) + tuple(f"$JS.API.STREAM.INFO.{stream}" for stream in streams)


def _consumes(stream: str, durable: str) -> tuple[str, ...]:
    return (
        f"$JS.API.STREAM.INFO.{stream}",
        f"$JS.API.CONSUMER.INFO.{stream}.{durable}",
        f"$JS.API.CONSUMER.CREATE.{stream}.{durable}",
        f"$JS.API.CONSUMER.CREATE.{stream}.{durable}.>",
        f"$JS.API.CONSUMER.DURABLE.CREATE.{stream}.{durable}",
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}",
        f"$JS.ACK.{stream}.{durable}.>",
    )


def _role(name: str, *publish: tuple[str, ...]) -> Allowed:
    """What every role may: beat its heart, hear the bus, be spoken to, read its own replies and no others'."""
    mine = (f"hg.v1.bus.{name}", *_leases(name), *_answers("admin"))
    return Allowed(
        publish=tuple(dict.fromkeys((*mine, *(subject for group in publish for subject in group)))),
        subscribe=(f"hg.v1.{name}.*", "hg.v1.bus.>", f"_R.{name}.>"),
    )


#: What each role may do. Whatever is not here is denied.
PERMISSIONS: dict[str, Allowed] = {
    "gateway": _role(
        "gateway",
        _tells("admission", "scheduler", "ledger"),
        _answers("admission", "scheduler"),
        _reads("tenants", "keys"),
        _writes("tenants", "keys"),
        _appends("usage", "audit"),
        ("hg.v1.bus.control",),
    ),
    "admission": _role(
        "admission", _tells("scheduler", "gateway", "ledger"), _answers("gateway", "scheduler"), _reads("tenants")
    ),
    "scheduler": _role(
        "scheduler",
        _tells("worker", "gateway", "admission"),
        _answers("gateway", "admission", "worker"),
        _appends("usage"),
        ("hg.v1.bus.control",),
    ),
    "worker": _role("worker", _tells("gateway", "scheduler"), _answers("scheduler", "gateway")),
    "ledger": _role(
        "ledger", _answers("gateway", "admission"), _consumes("usage", "ledger"), _consumes("audit", "ledger")
    ),
    # The operator: the command line, and whoever sets up the stores.
    "admin": Allowed(
        publish=("hg.>", "_R.>", "$JS.API.>", "$JS.ACK.>", "$JS.FC.>", "$KV.>"),
        subscribe=("hg.v1.admin.*", "hg.v1.bus.>", "_R.admin.>"),
    ),
}
