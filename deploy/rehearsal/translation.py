"""What of docker-compose.yml and of the shipped configurations is changed for loopback, and nothing else.

Every service gets a loopback address of its own, so that ports stay what they are. Then:

1. the name of a service before a port (`nats:4222`) becomes its address;
2. `localhost`, `127.0.0.1` and `0.0.0.0` become the service's own address: a container is alone on its loopback;
3. paths of mounts, volumes and secrets become those on this host;
4. HAProxy and Prometheus ask Docker's DNS for names: they are given the addresses instead (`server-template` becomes
   `server`, `dns_sd_configs` become `static_configs`); jobs of services that do not run here are left out.
"""

from __future__ import annotations

import re
import secrets
import socket
from collections.abc import Collection, Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

__all__ = ["Translation", "loopback_addresses"]

_OWN = re.compile(r"(?<![\w.])(?:localhost|127\.0\.0\.1|0\.0\.0\.0)(?![\w.])")
_TEMPLATE = re.compile(r"^( *)server-template (\S+) \d+ ([\w-]+):(\d+)(.*)", re.MULTILINE)


def loopback_addresses(names: Iterable[str], *, probe_ports: Iterable[int] = (4222, 8080, 9464)) -> dict[str, str]:
    """An address of 127.0.0.0/8 for each, of a network that nobody listens in.

    :raises OSError: this system has only 127.0.0.1 (such as macOS).
    """
    names = list(names)
    for attempt in range(16):
        network = f"127.{64 + secrets.randbelow(128)}.{secrets.randbelow(256)}"
        found = {name: f"{network}.{number}" for number, name in enumerate(names, 1)}
        try:
            for address in found.values():
                for port in probe_ports:
                    with socket.socket() as probe:
                        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                        probe.bind((address, port))
            return found
        except OSError:
            if attempt == 15:
                raise
    raise AssertionError("not reached")


class Translation:
    """`addresses`: of every service that runs here. `members`: the services that share a name, the first of which
    stands for all where only one address can be given."""

    def __init__(self, addresses: Mapping[str, str], members: Mapping[str, Sequence[str]] | None = None) -> None:
        self._addresses = dict(addresses)
        self._members = {name: [name] for name in addresses}
        for name, services in (members or {}).items():
            if here := [service for service in services if service in addresses]:
                self._members[name] = here
        names = "|".join(sorted(map(re.escape, self._members), key=len, reverse=True))
        self._named = re.compile(rf"(?<![\w.-])({names})(?=:\d)")

    def address(self, service: str) -> str:
        return self._addresses[service]

    def text(self, text: str, *, of: str, paths: Mapping[str, str] | None = None) -> str:
        """A value of the environment, an argument, or a configuration of the service `of`."""
        text = self._named.sub(lambda found: self._addresses[self._members[found[1]][0]], text)
        text = _OWN.sub(self._addresses[of], text)
        if paths:
            targets = "|".join(sorted(map(re.escape, paths), key=len, reverse=True))
            text = re.sub(rf"(?<![\w.-])({targets})(?![\w.-])", lambda found: paths[found[1]], text)
        return text

    def haproxy(self, config: str, *, of: str) -> str:
        """HAProxy's configuration: it listens on its own address, and finds servers without DNS."""
        config = re.sub(r"\bbind :(\d+)", rf"bind {self._addresses[of]}:\1", config)
        config = _TEMPLATE.sub(self._servers, config).replace(" resolvers docker init-addr none", "")
        kept: list[str] = []
        for line in config.splitlines():
            server = re.match(r"\s+server \S+ ([\w-]+):\d+", line)
            if server and server[1] not in self._addresses:
                line = f"    # {server[1]} does not run here"
            kept.append(line)
        return self.text("\n".join(kept) + "\n", of=of)

    def _servers(self, template: re.Match[str]) -> str:
        indent, prefix, name, port, rest = template.groups()
        members = [self._addresses[service] for service in self._members.get(name, ())]
        return "\n".join(f"{indent}server {prefix}{number} {at}:{port}{rest}" for number, at in enumerate(members, 1))

    def prometheus(self, config: Path, *, of: str, paths: Mapping[str, str], running: Collection[str]) -> str:
        """Prometheus' configuration: targets by address, of services that are running; rules where they are here."""
        yaml = YAML(typ="safe", pure=True)
        read: dict[str, Any] = yaml.load(config)
        read["rule_files"] = [self.text(pattern, of=of, paths=paths) for pattern in read["rule_files"]]
        jobs: list[dict[str, Any]] = []
        for job in read["scrape_configs"]:
            targets = [
                self.text(target, of=of) for static in job.pop("static_configs", ()) for target in static["targets"]
            ]
            for found in job.pop("dns_sd_configs", ()):
                members = [service for name in found["names"] for service in self._members.get(name, ())]
                targets += [f"{self._addresses[one]}:{found['port']}" for one in members if one in running]
            if targets:
                jobs.append({**job, "static_configs": [{"targets": targets}]})
        out = StringIO()
        yaml.dump({**read, "scrape_configs": jobs}, out)
        return out.getvalue()
