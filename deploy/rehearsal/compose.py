"""docker-compose.yml as data: as much of the specification as our file uses, and an error for what is beyond that."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

__all__ = ["Compose", "HealthCheck", "Mount", "Service", "interpolate", "load_compose", "seconds"]

_VARIABLE = re.compile(r"\$(?:(?P<escaped>\$)|\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\})")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Mount:
    """`source`: a volume's name, or a path on the host if `is_path`."""

    source: str
    target: str
    is_path: bool


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """A program with its arguments, and how it is run. Seconds."""

    test: tuple[str, ...]
    interval_s: float
    timeout_s: float
    start_period_s: float
    start_interval_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One service. `depends_on`: the service and the condition. `raw` is all of it, interpolated."""

    name: str
    image: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    secrets: tuple[str, ...]
    mounts: tuple[Mount, ...]
    depends_on: Mapping[str, str]
    health: HealthCheck | None
    profiles: tuple[str, ...]
    is_one_shot: bool
    raw: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Compose:
    """The file. `secrets`: name to path."""

    services: Mapping[str, Service]
    secrets: Mapping[str, Path]
    volumes: tuple[str, ...]
    networks: Mapping[str, Any]

    def selected(self, *profiles: str) -> dict[str, Service]:
        """Those that `docker compose up` starts with these profiles, dependencies first."""
        wanted = {
            name: service
            for name, service in self.services.items()
            if not service.profiles or set(profiles) & set(service.profiles)
        }
        ordered: dict[str, Service] = {}

        def add(name: str, on_behalf_of: tuple[str, ...]) -> None:
            if name in on_behalf_of:
                raise ValueError(f"services wait for each other: {' > '.join((*on_behalf_of, name))}")
            for other in wanted[name].depends_on:
                add(other, (*on_behalf_of, name))
            ordered.setdefault(name, wanted[name])

        for name in wanted:
            add(name, ())
        return ordered

    def members(self, *profiles: str) -> dict[str, list[str]]:
        """Which services Docker's DNS finds by a name: the one that is called so, and those with such an alias."""
        found: dict[str, list[str]] = {}
        for name, service in self.selected(*profiles).items():
            networks = service.raw.get("networks", ())
            attached = networks.values() if isinstance(networks, dict) else ()
            for alias in {name, *(alias for network in attached for alias in (network or {}).get("aliases", ()))}:
                found.setdefault(alias, []).append(name)
        return {alias: sorted(services, key=lambda one: one != alias) for alias, services in found.items()}


def load_compose(path: Path, environ: Mapping[str, str] | None = None) -> Compose:
    """Read the file, with `environ` as its .env.

    :raises ValueError: services depend on unknown ones, or use something that is not declared.
    """
    raw = interpolate(YAML(typ="safe", pure=True).load(path), environ or {})
    services = {name: _service(name, given) for name, given in raw["services"].items()}
    compose = Compose(
        services,
        {name: path.parent / str(given["file"]) for name, given in raw.get("secrets", {}).items()},
        tuple(raw.get("volumes", {})),
        raw.get("networks", {}),
    )
    for service in services.values():
        _check(service, compose)
    return compose


def interpolate(value: Any, environ: Mapping[str, str]) -> Any:
    """`${NAME:-default}` and `${NAME}` in every text. :raises KeyError: a variable has neither value nor default."""
    if isinstance(value, dict):
        return {key: interpolate(item, environ) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolate(item, environ) for item in value]
    return _VARIABLE.sub(lambda found: _value(found, environ), value) if isinstance(value, str) else value


def _value(found: re.Match[str], environ: Mapping[str, str]) -> str:
    if found["escaped"]:
        return "$"
    value = environ.get(found["name"], "") or found["default"]
    if value is None:
        raise KeyError(f"${{{found['name']}}} has no value and no default")
    return value


def seconds(duration: str) -> float:
    """`1m30s` in seconds. :raises ValueError: not a duration."""
    parts = re.findall(r"(\d+)(ms|s|m|h)", duration)
    if "".join(number + unit for number, unit in parts) != duration or not parts:
        raise ValueError(f"{duration!r} is not a duration such as 1m30s")
    return sum(int(number) * _UNITS[unit] for number, unit in parts)


def _service(name: str, given: Mapping[str, Any]) -> Service:
    command = given.get("command", [])
    if isinstance(command, str):
        raise ValueError(f"{name}: its command is one text: write a list, which no shell has to split")
    health = given.get("healthcheck")
    return Service(
        name=name,
        image=given.get("image", ""),
        command=tuple(map(str, command)),
        environment={key: str(value) for key, value in given.get("environment", {}).items()},
        secrets=tuple(given.get("secrets", ())),
        mounts=tuple(map(_mount, given.get("volumes", ()))),
        depends_on={other: how["condition"] for other, how in given.get("depends_on", {}).items()},
        health=_health(health) if health else None,
        profiles=tuple(given.get("profiles", ())),
        is_one_shot=given.get("restart") == "no",
        raw=given,
    )


def _mount(given: str) -> Mount:
    source, target = given.split(":")[:2]
    return Mount(source, target, is_path=source.startswith((".", "/")))


def _health(given: Mapping[str, Any]) -> HealthCheck:
    kind, *test = given["test"]
    if kind != "CMD":
        raise ValueError(f"a health check is {kind}: write CMD, which needs no shell")
    return HealthCheck(
        tuple(test),
        seconds(given["interval"]),
        seconds(given["timeout"]),
        seconds(given["start_period"]),
        seconds(given["start_interval"]),
    )


def _check(service: Service, compose: Compose) -> None:
    unknown = [
        *(f"service {name}" for name in service.depends_on if name not in compose.services),
        *(f"secret {name}" for name in service.secrets if name not in compose.secrets),
        *(
            f"volume {mount.source}"
            for mount in service.mounts
            if not mount.is_path and mount.source not in compose.volumes
        ),
        *(f"network {name}" for name in service.raw.get("networks", ()) if name not in compose.networks),
    ]
    if unknown:
        raise ValueError(f"{service.name} uses what is not declared: {', '.join(unknown)}")
