"""All services of the default profile that can run here, started in the order of their health."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from deploy.rehearsal.compose import Compose, HealthCheck, Service, load_compose
from deploy.rehearsal.image import GATEWAY_IMAGE, write_import_guard
from deploy.rehearsal.programs import ENTRY_POINTS, NOT_HERE, RunAs, initialise_postgres, postgres_command, unprivileged
from deploy.rehearsal.receiver import Receiver
from deploy.rehearsal.service import Running
from deploy.rehearsal.translation import Translation, loopback_addresses

__all__ = ["ENVIRONMENT", "Stage"]

#: The .env of the rehearsal: every trace is kept, since one of them is looked at; one thread, since cores are shared.
ENVIRONMENT = {"HEADGATE_SAMPLE_RATIO": "1.0", "HEADGATE_THREADS": "1"}
#: What `make compose-secrets-ha` adds to it.
_CLUSTERED = {
    "HEADGATE_NATS_REPLICAS": "3",
    "HEADGATE_NATS_MONITOR": "http://nats:8222,http://nats-2:8222,http://nats-3:8222",
}

_RECEIVER = "otel-collector"
_SECRETS = "/run/secrets"
_LOOK_AGAIN_S = 0.1
_RESTART_AFTER_S = 0.3


class Stage:
    """A context manager: what it started is gone when it is left. `directory` is empty and ours.

    `services` are by name, `healthy_after_s` says when each was healthy.
    """

    def __init__(self, root: Path, directory: Path, *, profiles: Sequence[str] = ()) -> None:
        self.root = root
        self.directory = directory
        self._cluster = ("nats-1", "nats-2", "nats-3") if "ha" in profiles else ()
        environment = {**ENVIRONMENT, **(_CLUSTERED if self._cluster else {})}
        self.compose: Compose = load_compose(root / "docker-compose.yml", environment)
        self._selected = self.compose.selected(*profiles)
        self.services: dict[str, Running] = {}
        self.healthy_after_s: dict[str, float] = {}
        self.receiver: Receiver | None = None
        here = [name for name in self._selected if name not in NOT_HERE or name == _RECEIVER]
        self.translation = Translation(loopback_addresses(here), self.compose.members(*profiles))
        self._other = unprivileged()
        self._ending = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="restarts")

    def url(self, service: str, port: int) -> str:
        return f"http://{self.translation.address(service)}:{port}"

    def secret(self, name: str) -> str:
        return (self.directory / "secrets" / name).read_text().strip()

    def __enter__(self) -> Stage:
        self.directory.chmod(0o755)  # PostgreSQL's user goes through it
        try:
            self._make_secrets()
            write_import_guard(self.directory / "image")
            self.receiver = Receiver(self.translation.address(_RECEIVER), 4318)
            self._keeper.start()
            self._start_all()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._ending.set()
        if self._keeper.ident is not None:
            self._keeper.join()
        for running in reversed(self.services.values()):
            running.stop()
        if self.receiver is not None:
            self.receiver.close()

    def _keep(self) -> None:
        """Start again what ended by itself, as the engine would."""
        while not self._ending.wait(_RESTART_AFTER_S):
            for running in list(self.services.values()):
                running.restart_if_ended()

    def _make_secrets(self) -> None:
        """By the command that makes them for containers, as the file has it for the service `init`."""
        init = self.compose.services["init"].command
        directory = str(self.directory / "secrets")
        command = [directory if argument == "/secrets" else argument for argument in init]
        command += ["--cluster", ",".join(self._cluster)] if self._cluster else []
        subprocess.run(
            [sys.executable, "-m", *command], check=True, stdout=subprocess.DEVNULL, cwd=self.root, timeout=30
        )

    def _start_all(self) -> None:
        """Each as soon as what it depends on is healthy, as `docker compose up` does."""
        began = time.monotonic()
        waiting = {name: service for name, service in self._selected.items() if name not in NOT_HERE}
        while waiting or self.healthy_after_s.keys() != self.services.keys():
            for name, service in list(waiting.items()):
                if all(other in self.healthy_after_s or other in NOT_HERE for other in service.depends_on):
                    self.services[name] = self._prepare(waiting.pop(name))
                    self.services[name].start()
            for name, running in self.services.items():
                if name not in self.healthy_after_s and running.is_healthy():
                    self.healthy_after_s[name] = time.monotonic() - began
            time.sleep(_LOOK_AGAIN_S)

    def _prepare(self, service: Service) -> Running:
        name = service.name
        paths = self._paths(service)

        def translated(text: str) -> str:
            return self.translation.text(text, of=name, paths=paths)

        environment = {key: translated(value) for key, value in service.environment.items()}
        if service.image.startswith(GATEWAY_IMAGE):
            environment["PYTHONPATH"] = str(self.directory / "image")
        command = [*ENTRY_POINTS.get(name, ()), *map(translated, service.command)]
        run_as = RunAs()
        if name == "postgres":
            run_as = self._other
            sockets = self._private("postgres-sockets", run_as)
            initialise_postgres(environment, run_as, sockets=sockets)
            command = postgres_command(self.translation.address(name), environment, sockets=sockets)
        return Running(
            name=name,
            command=command,
            environment=environment,
            health=_translated_health(service.health, translated),
            log=self.directory / f"{name}.log",
            directory=self.root,
            stop_signal=signal.Signals[service.raw.get("stop_signal", "SIGTERM")],
            run_as=run_as,
        )

    def _paths(self, service: Service) -> dict[str, str]:
        """Where on this host the paths of the container are: its volumes, files and secrets."""
        paths: dict[str, str] = {}
        for mount in service.mounts:
            if mount.is_path:
                paths[mount.target] = str((self.root / mount.source).resolve())
            else:
                run_as = self._other if service.name == "postgres" else RunAs()
                paths[mount.target] = str(self._private(f"volume-{mount.source}", run_as))
        for secret in service.secrets:
            paths[f"{_SECRETS}/{secret}"] = str(self._secret_file(service, secret, paths))
        for mount in service.mounts:
            if mount.target.endswith((".cfg", ".yml")):
                paths[mount.target] = str(self._configuration(service, Path(paths[mount.target]), paths))
        return paths

    def _secret_file(self, service: Service, secret: str, paths: Mapping[str, str]) -> Path:
        """nats.conf is a secret with addresses and paths in it; PostgreSQL's user reads a copy of its password."""
        made = self.directory / "secrets" / secret
        if secret == "nats.conf":
            translated = self.translation.text(made.read_text(), of=service.name, paths=paths)
            return self._write(f"{service.name}-{secret}", translated)
        if service.name == "postgres":
            copy = self._private("postgres-secrets", self._other) / secret
            copy.write_text(made.read_text())
            copy.chmod(0o600)
            if self._other.uid is not None:
                os.chown(copy, self._other.uid, self._other.gid or 0)
            return copy
        return made

    def _configuration(self, service: Service, shipped: Path, paths: Mapping[str, str]) -> Path:
        if service.name == "proxy":
            text = self.translation.haproxy(shipped.read_text(), of=service.name)
        else:
            text = self.translation.prometheus(
                shipped, of=service.name, paths=paths, running=self._selected.keys() - NOT_HERE.keys()
            )
        return self._write(f"{service.name}-{shipped.name}", text)

    def _write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.touch(mode=0o600)
        path.write_text(text)
        return path

    def _private(self, name: str, run_as: RunAs) -> Path:
        """A directory that is its user's alone."""
        path = self.directory / name
        path.mkdir(mode=0o700, exist_ok=True)
        if run_as.uid is not None:
            os.chown(path, run_as.uid, run_as.gid or 0)
        return path


def _translated_health(health: HealthCheck | None, translated: Callable[[str], str]) -> HealthCheck | None:
    return None if health is None else replace(health, test=tuple(map(translated, health.test)))
