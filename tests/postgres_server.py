"""A private PostgreSQL in a directory of its own, from Debian's package, on a free port."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

PASSWORD = "only-for-tests"


class PostgresServer:
    """`start`, `kill` and `stop` keep the data. The user is `headgate`, with a password."""

    def __init__(self, binaries: Path, directory: Path, user: str | None) -> None:
        self._binaries = binaries
        self._dir = directory
        self._user: dict[str, Any] = {"user": user, "group": user, "extra_groups": []} if user else {}
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]

    @property
    def url(self) -> str:
        """Without the password."""
        return f"postgresql://headgate@127.0.0.1:{self.port}/postgres"

    def create(self) -> None:
        """The files of an empty database."""
        password = self._dir / "password"
        password.write_text(PASSWORD)
        if self._user:
            shutil.chown(self._dir, self._user["user"])
            shutil.chown(password, self._user["user"])
        options = ["-U", "headgate", "-A", "scram-sha-256", "--pwfile", str(password), "-E", "UTF8", "--no-locale"]
        command = [str(self._binaries / "initdb"), "-D", str(self._dir / "data"), "--no-sync", *options]
        subprocess.run(command, check=True, capture_output=True, cwd=self._dir, timeout=60, **self._user)

    def start(self) -> None:
        """Returns when it answers."""
        options = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": str(self._dir)}
        options |= {"shared_buffers": "16MB", "max_connections": 10}
        command = [str(self._binaries / "postgres"), "-D", str(self._dir / "data")]
        command += [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with (self._dir / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._dir, **self._user)
        until = time.monotonic() + 30
        while True:
            with contextlib.suppress(psycopg.OperationalError):
                self.connect().close()
                return
            assert self._process.poll() is None, (self._dir / "log").read_text()
            assert time.monotonic() < until, "PostgreSQL does not start"
            time.sleep(0.05)

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.url, password=PASSWORD, autocommit=True, connect_timeout=3)

    def empty(self) -> None:
        """As at first."""
        with self.connect() as connection:
            connection.execute("DROP TABLE IF EXISTS usage, audit, ledger_schema")

    def kill(self) -> None:
        """As a power cut: every process of it at once, nothing flushed, nobody told."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for pid in (self._process.pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(20)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(20)


@contextlib.contextmanager
def postgres() -> Iterator[PostgresServer]:
    """A running one. Skips where it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    beside = shutil.which("initdb")
    if not found and beside is None:
        pytest.skip("PostgreSQL is not installed: no initdb in /usr/lib/postgresql/*/bin nor on PATH")
    binaries = found[-1].parent if found else Path(str(beside)).parent
    user = None
    if os.geteuid() == 0:  # initdb refuses root
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = "postgres" if "postgres" in names else "nobody"
    with tempfile.TemporaryDirectory(prefix="hg-postgres-", ignore_cleanup_errors=True) as directory:
        server = PostgresServer(binaries, Path(directory), user)
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop()
