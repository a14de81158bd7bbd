"""`headgate run ROLE`: one role against a NATS server, as compose files and other orchestrators start it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import click
import uvloop

from actors.addresses import instance_of
from actors.runtime import ActorError
from headgate.commands.options import policies_epilog, stack_options
from headgate.errors import HeadgateError
from headgate.settings import ROLES, SETTINGS_VARIABLE, Settings

__all__ = ["command"]


@click.command("run", epilog=policies_epilog())
@click.argument("role", type=click.Choice(ROLES))
@click.option(
    "--instance", default="", help="Name of this instance, unique in its role. [default: host and process id]"
)
@stack_options
def command(role: str, instance: str, **options: object) -> None:
    """Run one ROLE of a stack, until SIGTERM.

    All roles of a stack need the same --nats; gateways also the same secrets (files in --data, or HEADGATE_PEPPER,
    HEADGATE_CACHE_SALT and HEADGATE_ADMIN_KEY).

    \b
    Example:
      headgate run worker --nats nats://worker:secret@nats:4222 --model /models/qwen3 --device cuda
    """
    child = SETTINGS_VARIABLE in os.environ
    settings = Settings.from_environment() if child else _given(options)
    if role == "ledger" and not child:
        _provision(settings)
    if role == "scheduler":
        instance = instance_of(settings.name)  # addressed by its model; a standby waits for the lease
    raise SystemExit(
        _run(role, settings, instance or instance_of(f"{socket.gethostname()}-{os.getpid()}"), child=child)
    )


def _given(options: dict[str, object]) -> Settings:
    settings = Settings(**options)  # type: ignore[arg-type]
    if not settings.nats:
        raise click.UsageError(
            "--nats is missing: the address of the NATS server, such as nats://user:password@host:4222"
        )
    _ = settings.policies  # refused here, not when the role is up
    Path(settings.data).mkdir(parents=True, exist_ok=True)
    return settings


def _provision(settings: Settings) -> None:
    """Make the buckets and streams that the server lacks; under `serve` the supervisor did."""
    from headgate.nats_server import provision

    try:
        uvloop.run(provision(settings.nats))
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
