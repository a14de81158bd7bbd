"""The configuration of a nats-server, for the embedded one and for those in containers, from one place.

JSON is a subset of the server's configuration language, so nothing needs quoting by hand. Passwords are in it as they
are: a bcrypt hash would cost every connection 50 to 100 ms of the server's CPU and us a library, and whoever can read
the file can read the password files beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from headgate.nats.permissions import PERMISSIONS

__all__ = ["CLIENT_PORT", "CLUSTER_PORT", "MAX_PAYLOAD", "MONITOR_PORT", "Cluster", "server_config"]

#: Where servers in containers listen: clients, the HTTP monitor, the other servers.
CLIENT_PORT, MONITOR_PORT, CLUSTER_PORT = 4222, 8222, 6222

MAX_PAYLOAD = 8 * 1024 * 1024
_CLUSTER_USER = "route"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Servers that keep what JetStream has together. `nodes` are their host names, `password` that of their routes.

    All have the same configuration; each is told its name on the command line (`nats-server --name`).
    """

    nodes: tuple[str, ...]
    password: str = field(repr=False)
    port: int = CLUSTER_PORT


def server_config(
    passwords: Mapping[str, str],
    *,
    listen: str,
    monitor: str,
    store_dir: str,
    store_bytes: int = 4 * 1024**3,
    name: str = "headgate",
    pid_file: str = "",
    cluster: Cluster | None = None,
) -> str:
    """The text of `nats.conf`: a user for every role of `PERMISSIONS`, with its password of `passwords`.

    `listen` and `monitor` are `host:port`. `name` is left out in a cluster.

    :raises ValueError: a role has no password.
    """
    if missing := sorted(PERMISSIONS.keys() - passwords.keys()):
        raise ValueError(f"no password for {', '.join(missing)}: every role needs one")
    users = [
        {
            "user": role,
            "password": passwords[role],
            "permissions": {"publish": list(allowed.publish), "subscribe": list(allowed.subscribe)},
        }
        for role, allowed in PERMISSIONS.items()
    ]
    config: dict[str, object] = {
        "listen": listen,
        "http": monitor,
        "max_payload": MAX_PAYLOAD,
        "max_pending": 4 * MAX_PAYLOAD,
        "write_deadline": "2s",
        "jetstream": {
            "store_dir": store_dir,
            "max_memory_store": 0,
            "max_file_store": store_bytes,
            "sync_interval": "10s",
        },
        "authorization": {
            "default_permissions": {"publish": {"deny": ">"}, "subscribe": {"deny": ">"}},
            "users": users,
        },
    }
    if pid_file:
        config["pid_file"] = pid_file
    if cluster is None:
        config["server_name"] = name
    else:
        config["cluster"] = _cluster(cluster)
    return json.dumps(config, indent=1)


def _cluster(cluster: Cluster) -> dict[str, object]:
    """Routes to all of them: a server notices which is itself."""
    login = f"{_CLUSTER_USER}:{cluster.password}"
    return {
        "name": "headgate",
        "listen": f"0.0.0.0:{cluster.port}",
        "authorization": {"user": _CLUSTER_USER, "password": cluster.password, "timeout": 2},
        "routes": [f"nats-route://{login}@{node}:{cluster.port}" for node in cluster.nodes],
    }
