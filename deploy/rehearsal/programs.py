"""Which program of this host stands for which image, and what an image does before it starts its program.

Nothing is downloaded: nats-server comes with its wheel, the rest are packages of Debian. `missing` says what is not
here, so that a test can skip with a reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "ENTRY_POINTS",
    "NOT_HERE",
    "RunAs",
    "find",
    "initialise_postgres",
    "missing",
    "postgres_command",
    "unprivileged",
]

#: Services of the default profile that no package of Debian can stand for, and why each is left out.
NOT_HERE = {
    "otel-collector": "not packaged: an OTLP receiver of our own takes its place and address",
    "jaeger": "not packaged",
    "grafana": "not packaged: its dashboards' expressions are evaluated in Prometheus instead",
    "volumes": "gives new volumes to the containers' user: here they are directories of ours",
}
#: Images whose entry point is the program, so that a command has only its arguments.
ENTRY_POINTS = {"prometheus": ("prometheus",)}
_PACKAGES = {"haproxy": "haproxy", "prometheus": "prometheus", "promtool": "prometheus", "postgres": "postgresql"}
_NOBODY = 65534


@dataclass(frozen=True, slots=True)
class RunAs:
    """Ids that a process is started with; None: our own."""

    uid: int | None = None
    gid: int | None = None

    def options(self) -> dict[str, object]:
        """For `subprocess`."""
        return {} if self.uid is None else {"user": self.uid, "group": self.gid, "extra_groups": ()}


def unprivileged() -> RunAs:
    """PostgreSQL refuses to run as root, and so do the containers."""
    return RunAs(_NOBODY, _NOBODY) if os.geteuid() == 0 else RunAs()


def find(program: str) -> str:
    """Where it is: beside this interpreter, on PATH, or where Debian keeps servers.

    :raises FileNotFoundError: it is not installed.
    """
    beside = Path(sys.executable).parent / program
    if beside.exists():
        return str(beside)
    servers = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    search = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", *map(str, servers)])
    found = shutil.which(program, path=search)
    if found is None:
        raise FileNotFoundError(f"{program} is not installed: apt-get install {_PACKAGES.get(program, program)}")
    # Debian links some of PostgreSQL's programs elsewhere; it finds its libraries beside the real file.
    return str(Path(found).resolve()) if program in ("postgres", "initdb") else found


def missing() -> str:
    """What the rehearsal lacks on this host, in words; empty if nothing."""
    lacking = []
    for program in ("nats-server", "haproxy", "prometheus", "promtool", "postgres", "initdb", "pg_isready"):
        try:
            find(program)
        except FileNotFoundError as error:
            lacking.append(str(error))
    if sys.platform != "linux":
        lacking.append(f"{sys.platform} has no loopback network, only 127.0.0.1")
    return "; ".join(lacking)


def initialise_postgres(environment: Mapping[str, str], run_as: RunAs, *, sockets: Path) -> None:
    """What the image's entrypoint does with a new volume: a cluster with one user, its password, and a database.

    `environment` is the service's, translated.
    """
    data = Path(environment["PGDATA"])
    if (data / "PG_VERSION").exists():
        return
    user = environment["POSTGRES_USER"]
    password = Path(environment["POSTGRES_PASSWORD_FILE"])
    command = [find("initdb"), f"--pgdata={data}", f"--username={user}", f"--pwfile={password}", "--no-sync"]
    command += environment.get("POSTGRES_INITDB_ARGS", "").split()
    _quietly(command, run_as)
    with (data / "pg_hba.conf").open("a") as access:  # as the entrypoint has it
        access.write("host all all all scram-sha-256\n")
    statement = f'CREATE DATABASE "{environment["POSTGRES_DB"]}";\n'
    single = [
        find("postgres"),
        "--single",
        "-D",
        str(data),
        "-F",
        "-c",
        f"unix_socket_directories={sockets}",
        "postgres",
    ]
    _quietly(single, run_as, told=statement)


def postgres_command(address: str, environment: Mapping[str, str], *, sockets: Path) -> list[str]:
    """What the image runs then. It listens on its own address."""
    options = [f"listen_addresses={address}", f"unix_socket_directories={sockets}"]
    return [find("postgres"), "-D", environment["PGDATA"], *(part for option in options for part in ("-c", option))]


def _quietly(command: Sequence[str], run_as: RunAs, *, told: str = "") -> None:
    done = subprocess.run(  # type: ignore[call-overload]
        command, input=told, capture_output=True, text=True, env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
        cwd="/", check=False, **run_as.options(),
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr or done.stdout}")
