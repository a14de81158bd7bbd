"""`headgate tenants`: who is served, and what each was promised."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import click

from headgate.client import AdminClient
from headgate.client_options import OrNone, client_options
from headgate.errors import HeadgateError
from headgate.output import emit, print_json, print_record, remark

__all__ = ["command"]

F = TypeVar("F", bound=Callable[..., Any])

_COLUMNS = {
    "name": "tenant",
    "tier": "tier",
    "ttft_ms": "ttft ms",
    "ttft_per_1k_ms": "+ per 1k",
    "tpot_ms": "tpot ms",
    "attainment": "attained",
    "weight": "weight",
    "rpm": "rpm",
    "tpm": "tpm",
    "concurrency": "at once",
    "daily_tokens": "tokens a day",
    "group": "group",
}


@click.group(name="tenants", epilog="Example: headgate tenants create acme --tier priority --ttft-ms 500 --tpot-ms 50")
def command() -> None:
    """Create, change, list and delete tenants."""


def _contract_options(command: F) -> F:
    """A value of `none` takes the promise or limit away."""
    options: list[tuple[str, click.ParamType[Any], str]] = [
        ("--tier", click.Choice(["priority", "default", "flex"]), "Served first, normally, or when there is room."),
        ("--ttft-ms", OrNone(float), "Promise: milliseconds to the first token."),
        ("--ttft-per-1k-ms", click.FLOAT, "Promise: so much later for every 1,000 prompt tokens."),
        ("--tpot-ms", OrNone(float), "Promise: milliseconds a later token, on average over a request."),
        ("--attainment", click.FLOAT, "Share of the admitted that keeps both, such as 0.99."),
        ("--weight", click.FLOAT, "Share inside the tier."),
        ("--rpm", OrNone(int), "Limit: requests a minute."),
        ("--tpm", OrNone(int), "Limit: prompt and output tokens a minute."),
        ("--concurrency", OrNone(int), "Limit: requests at once."),
        ("--daily-tokens", OrNone(int), "Limit: prompt and output tokens a UTC day."),
        ("--group", click.STRING, "Tenants of one group share cached prefixes; `none`: nobody."),
    ]
    for name, kind, text in reversed(options):
        command = click.option(name, type=kind, help=text)(command)
    return command


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that were named on the command line; `none` as null."""
    return {name: None if value == "none" else value for name, value in fields.items() if value is not None}


@command.command(epilog="Example: headgate tenants create acme --tier priority --ttft-ms 500 --rpm 600")
@click.argument("name")
@_contract_options
@client_options
def create(name: str, data: str, admin_url: str | None, as_json: bool, **fields: Any) -> None:
    """Create the tenant NAME."""
    with AdminClient(data=Path(data), admin_url=admin_url) as admin:
        _show(admin.post("tenants", {"name": name, **_given(fields)}), as_json=as_json)


@command.command(epilog="Example: headgate tenants show acme --json")
@click.argument("name")
@client_options
def show(name: str, data: str, admin_url: str | None, as_json: bool) -> None:
    """Show the contract and limits of the tenant NAME."""
    with AdminClient(data=Path(data), admin_url=admin_url) as admin:
        _show(admin.get(f"tenants/{quote(name, safe='')}"), as_json=as_json)


@command.command(name="list", epilog="Example: headgate tenants list")
@client_options
def list_tenants(data: str, admin_url: str | None, as_json: bool) -> None:
    """List all tenants."""
    with AdminClient(data=Path(data), admin_url=admin_url) as admin:
        rows = admin.get("tenants")["tenants"]
    emit(rows, columns=_COLUMNS, as_json=as_json, empty="No tenants yet: `headgate tenants create NAME` makes one.")


@command.command(name="set", epilog="Example: headgate tenants set acme --ttft-ms 300 --rpm none")
@click.argument("name")
@_contract_options
@client_options
def set_tenant(name: str, data: str, admin_url: str | None, as_json: bool, **fields: Any) -> None:
    """Change the tenant NAME: what is not given stays, `none` takes a promise or limit away."""
    given = _given(fields)
    if not given:
        raise HeadgateError("nothing to change was given: name at least one option, such as --ttft-ms 300")
    with AdminClient(data=Path(data), admin_url=admin_url) as admin:
        _show(admin.patch(f"tenants/{quote(name, safe='')}", given), as_json=as_json)


@command.command(epilog="Example: headgate tenants delete acme --yes")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@client_options
def delete(name: str, yes: bool, data: str, admin_url: str | None, as_json: bool) -> None:
    """Delete the tenant NAME, and revoke its keys. Asks first on a terminal."""
    with AdminClient(data=Path(data), admin_url=admin_url) as admin:
        if not yes and sys.stdin.isatty():
            click.confirm(f"Delete the tenant {name!r} and revoke its keys?", abort=True, err=True)
        deleted = admin.delete(f"tenants/{quote(name, safe='')}")
    if as_json:
        print_json(deleted)
    else:
        remark(f"Deleted {name}; {deleted['revoked_keys']} of its keys were revoked.")


def _show(tenant: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(tenant)
    else:
        print_record(tenant)
