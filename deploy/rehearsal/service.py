"""One service of the compose file as a process: its command, its environment, its health check, its restart."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.rehearsal.compose import HealthCheck
from deploy.rehearsal.programs import RunAs, find

__all__ = ["NotHealthy", "Running"]

#: The interpreter needs these of the host, as it would find them in its image.
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")


#: A model that takes minutes to load has its time in the file; the one of the rehearsal does not need it.
_PATIENCE_S = 60.0
#: A host that is shared with others is slow at times.
_LEAST_S = 20.0
#: As often may a service end before it counts as broken.
_RESTARTS = 8


class NotHealthy(RuntimeError):
    """A service did not become healthy, or ended; the message has its last words."""


@dataclass(slots=True)
class Running:
    """A process that is started, asked, killed and started again. Everything in it is translated already."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    health: HealthCheck | None
    log: Path
    directory: Path
    stop_signal: signal.Signals = signal.SIGTERM
    run_as: RunAs = field(default_factory=RunAs)
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    is_wanted: bool = False
    started_at: float = 0.0
    #: Whoever kills, starts, and starts again what ended are on different threads.
    lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        """Start it, also again. It gets the environment of the compose file, and none of ours."""
        with self.lock:
            self._start()

    def _start(self) -> None:
        self.is_wanted = True
        self.started_at = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # type: ignore[call-overload]
                [find(self.command[0]), *self.command[1:]],
                env=self._environment(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self.run_as.options(),
            )

    def restart_if_ended(self) -> None:
        """What `restart: unless-stopped` means."""
        with self.lock:
            if self.is_wanted and self.process is not None and self.process.poll() is not None:
                self.restarts += 1
                self._start()

    def check(self) -> list[str]:
        """What its health check says is wrong, by running it once; nothing if it is healthy."""
        assert self.health is not None, f"{self.name} has no health check"
        program, *arguments = self.health.test
        if program.rpartition("/")[2] == "wget":
            return _get(arguments[-1], self.health.timeout_s)  # the images have busybox' wget; here it is us who ask
        try:
            done = subprocess.run(
                [find(program), *arguments],
                env=self._environment(),
                cwd=self.directory,
                capture_output=True,
                text=True,
                # An interpreter that starts on a host where everything starts at once is slow, and not ill.
                timeout=self.health.timeout_s * 3,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return [f"{program} takes longer than {self.health.timeout_s:g} s"]
        return [] if done.returncode == 0 else [done.stderr.strip() or done.stdout.strip() or "no reason"]

    def is_healthy(self) -> bool:
        """Whether its health check passes now.

        :raises NotHealthy: it ended, or its start period is over.
        """
        assert self.process is not None
        assert self.health is not None
        reasons = self.check()
        if reasons and self.restarts > _RESTARTS:
            raise NotHealthy(f"{self.name} ended {self.restarts} times: {self.last_words()}")
        if reasons and time.monotonic() - self.started_at > min(_LEAST_S + self.health.start_period_s, _PATIENCE_S):
            raise NotHealthy(f"{self.name} is not healthy: {reasons[0]}; {self.last_words()}")
        return not reasons

    def wait_healthy(self) -> float:
        """Ask until it is well; returns the seconds that took. :raises NotHealthy: as `is_healthy`."""
        began = time.monotonic()
        while not self.is_healthy():
            time.sleep(0.2)
        return time.monotonic() - began

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone. It stays so until it is started."""
        assert self.process is not None
        with self.lock:
            self.is_wanted = False
            self.process.kill()
            self.process.wait()

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return None if self.process is None else self.process.poll()

    def stop(self, timeout_s: float = 10.0) -> None:
        """As `docker compose stop`: its signal, then SIGKILL."""
        with self.lock:
            self.is_wanted = False
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(self.stop_signal)
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def last_words(self, lines: int = 8) -> str:
        return " | ".join(self.log.read_text(errors="replace").splitlines()[-lines:]) or "it said nothing"

    def _environment(self) -> dict[str, str]:
        return {**{name: os.environ[name] for name in _KEPT if name in os.environ}, **self.environment}


def _get(url: str, timeout_s: float) -> list[str]:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=timeout_s):
            return []
    except (urllib.error.URLError, OSError) as error:
        return [f"{url}: {error}"]
