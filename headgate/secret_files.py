"""The secrets of a stack in containers: one file each, as Compose and other engines mount them, and `nats.conf`.

Each file is for its owner alone (0600), in a directory that only they may enter: containers run as that user. Nothing
here prints a secret, and nothing overwrites one unless it is asked to.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gateway.keys import new_admin_key
from headgate.errors import HeadgateError
from headgate.nats.config import CLIENT_PORT, MONITOR_PORT, Cluster, server_config
from headgate.nats.permissions import PERMISSIONS

__all__ = ["NATS_CONFIG", "SecretFiles"]

NATS_CONFIG = "nats.conf"
_CLUSTER = "nats-cluster"
#: JetStream in a container: the volume.
_STORE_DIR = "/data"


def _password() -> str:
    return secrets.token_urlsafe(24)


def _key() -> str:
    return secrets.token_hex(32)


_MAKERS: dict[str, Callable[[], str]] = {
    "admin-key": new_admin_key,
    "pepper": _key,
    "cache-salt": _key,
    **{f"nats-{role}": _password for role in PERMISSIONS},
    "postgres-password": _password,
    "grafana-password": _password,
}


class SecretFiles:
    """The directory of them. It is made where it is missing."""

    def __init__(self, directory: Path) -> None:
        self._dir = directory

    def names(self) -> list[str]:
        """Everything that can be rotated."""
        return [*_MAKERS, *([_CLUSTER] if self._nodes() else []), NATS_CONFIG]

    def make_missing(self, cluster: Sequence[str] = ()) -> dict[str, str]:
        """What was done with each: `made`, `kept`, or `differs` (a `nats.conf` that would be written otherwise now).

        `cluster`: host names of the servers that are one, for a `nats.conf` that is made now.
        """
        try:
            self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise HeadgateError(f"the directory {self._dir} cannot be made: {error.strerror}") from error
        makers = {**_MAKERS, **({_CLUSTER: _password} if cluster or self._nodes() else {})}
        done: dict[str, str] = {}
        for name, make in makers.items():
            done[name] = "kept" if (self._dir / name).exists() else "made"
            if done[name] == "made":
                self._write(name, make() + "\n")
        path = self._dir / NATS_CONFIG
        wanted = self._config(tuple(cluster) or self._nodes())
        if not path.exists():
            self._write(NATS_CONFIG, wanted)
            done[NATS_CONFIG] = "made"
        else:
            done[NATS_CONFIG] = "kept" if path.read_text() == wanted else "differs"
        return done

    def rotate(self, name: str, cluster: Sequence[str] = ()) -> list[str]:
        """Replace one secret, and `nats.conf` with it where it is in there. Returns the names of what was written.

        `nats.conf` by itself is written anew from the passwords there are, with the permissions of this version.

        :raises HeadgateError: there is no such secret, or it cannot be written.
        """
        if name not in self.names():
            raise HeadgateError(f"there is no secret {name!r}: choose from {', '.join(self.names())}")
        nodes = tuple(cluster) or self._nodes()
        texts = {}
        if name != NATS_CONFIG:
            maker = _password if name == _CLUSTER else _MAKERS[name]
            texts[name] = maker() + "\n"
        if name.startswith("nats"):  # made before anything is written: a password that nats.conf lacks opens nothing
            texts[NATS_CONFIG] = self._config(nodes, texts)
        for file, text in texts.items():
            self._write(file, text)
        return list(texts)

    def _config(self, nodes: tuple[str, ...], new: Mapping[str, str] | None = None) -> str:
        """`new`: secrets that are not in their files yet."""
        drawn = new or {}

        def secret(name: str) -> str:
            return drawn[name].strip() if name in drawn else self._read(name)

        return server_config(
            {role: secret(f"nats-{role}") for role in PERMISSIONS},
            listen=f"0.0.0.0:{CLIENT_PORT}",
            monitor=f"0.0.0.0:{MONITOR_PORT}",
            store_dir=_STORE_DIR,
            cluster=Cluster(nodes=nodes, password=secret(_CLUSTER)) if nodes else None,
        )

    def _nodes(self) -> tuple[str, ...]:
        """Of the cluster that `nats.conf` is for; empty for a single server."""
        try:
            routes = json.loads((self._dir / NATS_CONFIG).read_text()).get("cluster", {}).get("routes", [])
        except (OSError, ValueError):
            return ()
        return tuple(route.rpartition("@")[2].rpartition(":")[0] for route in routes)

    def _read(self, name: str) -> str:
        try:
            return (self._dir / name).read_text().strip()
        except OSError as error:
            raise HeadgateError(
                f"{self._dir / name} cannot be read: {error.strerror}; run `headgate secrets init`"
            ) from error

    def _write(self, name: str, text: str) -> None:
        """Whole or not at all, and private from the first byte on."""
        draft = self._dir / f".{name}.{os.getpid()}"
        try:
            draft.unlink(missing_ok=True)
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._dir / name)
        except OSError as error:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            raise HeadgateError(f"{self._dir / name} cannot be written: {error.strerror}") from error
