"""`headgate run ROLE`: one role against a NATS server, as compose files and other orchestrators start it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import click
import msgspec
import uvloop

from actors.addresses import instance_of
from actors.runtime import ActorError
from headgate.commands.options import policies_epilog, stack_options
from headgate.errors import HeadgateError
from headgate.nats.address import login_of, read_secret
from headgate.settings import ROLES, SETTINGS_VARIABLE, Settings

__all__ = ["command"]

#: So long a NATS cluster that has just started may take to be ready.
_PROVISION_S = 60.0


@click.command("run", epilog=policies_epilog(), context_settings={"auto_envvar_prefix": "HEADGATE"})
@click.argument("role", type=click.Choice(ROLES))
@click.option(
    "--instance", default="", help="Name of this instance, unique in its role. [default: host and process id]"
)
@click.option(
    "--ops-port",
    type=click.IntRange(0, 65535),
    help="Serve /health, /ready and /metrics of this process there; 0: any free port. [default: not at all]",
)
@click.option(
    "--nats-admin-password-file",
    default="",
    help="Ledger only: file with the password of the NATS user admin, to make the buckets and streams it lacks.",
)
@click.option(
    "--nats-replicas",
    default=1,
    show_default=True,
    type=click.IntRange(1, 5),
    help="Ledger only: servers of a NATS cluster that keep each bucket and stream.",
)
@stack_options
def command(role: str, instance: str, nats_admin_password_file: str, nats_replicas: int, **options: object) -> None:
    """Run one ROLE of a stack, until SIGTERM.

    Every option can come from the environment instead: HEADGATE_NATS, HEADGATE_MODEL_NAME, HEADGATE_OPS_PORT ...

    All roles of a stack need the same --nats; gateways also the same secrets: files in --data, or files named by
    HEADGATE_PEPPER_FILE, HEADGATE_CACHE_SALT_FILE and HEADGATE_ADMIN_KEY_FILE.

    \b
    Example:
      headgate run worker --nats nats://worker:secret@nats:4222 --model /models/qwen3 --device cuda
    """
    child = SETTINGS_VARIABLE in os.environ
    settings = Settings.from_environment() if child else _given(options)
    settings = msgspec.structs.replace(settings, instance=instance or f"{socket.gethostname()}-{os.getpid()}")
    if role == "ledger" and not child:
        _provision(settings, nats_admin_password_file, replicas=nats_replicas)
    # A scheduler is addressed by its model; the instance tells it from its standby.
    name = instance_of(settings.name if role == "scheduler" else settings.instance)
    raise SystemExit(_run(role, settings, name, child=child))


def _given(options: dict[str, object]) -> Settings:
    settings = Settings(**options)  # type: ignore[arg-type]
    if not settings.nats:
        raise click.UsageError(
            "--nats is missing: the address of the NATS server, such as nats://user:password@host:4222"
        )
    _ = settings.policies  # refused here, not when the role is up
    try:
        Path(settings.data).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HeadgateError(f"--data {settings.data} cannot be made: {error.strerror}") from error
    return settings


def _provision(settings: Settings, admin_password_file: str, *, replicas: int) -> None:
    """Make the buckets and streams that the server lacks; under `serve` the supervisor did.

    A ledger may not where every role has a user of its own, and then it has the password of `admin` for it.
    """
    from headgate.nats import provision

    password = read_secret(admin_password_file, of="--nats-admin-password-file")
    user, url = login_of(settings.nats)
    if password is not None:
        url = ",".join(one.replace("://", "://admin@", 1) for one in url.split(","))
    elif user in ("", "admin"):
        url, password = settings.nats, read_secret(settings.nats_password_file, of="--nats-password-file")
    else:
        return
    try:
        uvloop.run(provision(url, password=password, replicas=replicas, timeout_s=_PROVISION_S))
    except ActorError as error:
        raise HeadgateError(f"the buckets and streams cannot be made on the NATS server: {error}") from error


def _run(role: str, settings: Settings, instance: str, *, child: bool) -> int:
    # Imported here: a gateway must not load the engine, nor a worker the HTTP stack.
    from headgate.process import run_role

    if role == "gateway":
        from headgate.roles.gateway import gateway as make
    elif role == "admission":
        from headgate.roles.admission import admission as make  # type: ignore[assignment]
    elif role == "scheduler":
        from headgate.roles.scheduler import scheduler as make  # type: ignore[assignment]
    elif role == "ledger":
        from headgate.roles.ledger import ledger as make  # type: ignore[assignment]
    else:
        from headgate.roles.worker import worker as make  # type: ignore[assignment]
    return run_role(role, make, settings, instance, child=child)
