"""`headgate keys`: what tenants show at the door."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from headgate.client import AdminClient
from headgate.client_options import Duration, Instant, client_options
from headgate.output import emit, print_json, print_record, remark

__all__ = ["command"]

_COLUMNS = {
    "id": "key",
    "tenant": "tenant",
    "state": "state",
    "created": "created",
    "expires": "expires",
    "grace_until": "old secret until",
    "models": "models",
    "tier_ceiling": "best tier",
}


@click.group(name="keys", epilog="Example: headgate keys create acme --expires 90d")
def command() -> None:
    """Create, list, rotate and revoke API keys."""


@command.command(epilog="Example: headgate keys create acme --expires 90d --models headgate-demo --json")
@click.argument("tenant")
@click.option("--expires", type=Instant(), help="When it ends: 12h, 90d, or a date such as 2027-01-01.")
@click.option("--models", help="Models that it may use, separated by commas; all by default.")
@click.option("--tier-ceiling", type=click.Choice(["priority", "default", "flex"]), help="Best tier it may ask for.")
@client_options
def create(
    tenant: str,
    expires: datetime.datetime | None,
    models: str | None,
    tier_ceiling: str | None,
    data: str,
    admin_url: str | None,
    as_json: bool,
) -> None:
    """Create a key of TENANT. It is shown now, and never again."""
    order: dict[str, Any] = {"tenant": tenant}
    if expires is not None:
        order["expires"] = expires.isoformat()
    if models is not None:
        order["models"] = [name.strip() for name in models.split(",") if name.strip()]
    if tier_ceiling is not None:
        order["tier_ceiling"] = tier_ceiling
    with AdminClient(data=Path(data), admin_url=admin_url) as admin:
        _show(admin.post("keys", order), as_json=as_json)


@command.command(name="list", epilog="Example: headgate keys list --tenant acme")
@click.option("--tenant", help="Only those of this tenant.")
@client_options
def list_keys(tenant: str | None, data: str, admin_url: str | None, as_json: bool) -> None:
    """List keys, without their secrets."""
    with AdminClient(data=Path(data), admin_url=admin_url) as admin:
        rows = admin.get("keys", tenant=tenant)["keys"]
    emit(rows, columns=_COLUMNS, as_json=as_json, empty="No keys yet: `headgate keys create TENANT` makes one.")


@command.command(epilog="Example: headgate keys rotate 0k3v9x2m4q7b --grace 24h")
@click.argument("id")
@click.option("--grace", type=Duration(), default="1h", show_default=True, help="How long the old secret stays good.")
@client_options
def rotate(id: str, grace: float, data: str, admin_url: str | None, as_json: bool) -> None:  # noqa: A002
    """Give the key ID a new secret. It is shown now, and never again."""
    with AdminClient(data=Path(data), admin_url=admin_url) as admin:
        _show(admin.post(f"keys/{quote(id, safe='')}/rotate", {"grace_s": grace}), as_json=as_json)


@command.command(epilog="Example: headgate keys revoke 0k3v9x2m4q7b")
@click.argument("id")
@client_options
def revoke(id: str, data: str, admin_url: str | None, as_json: bool) -> None:  # noqa: A002
    """Refuse the key ID from now on, on every gateway."""
    with AdminClient(data=Path(data), admin_url=admin_url) as admin:
        revoked = admin.delete(f"keys/{quote(id, safe='')}")
    if as_json:
        print_json(revoked)
    else:
        remark(f"Revoked {revoked['id']} of {revoked['tenant']}.")


def _show(made: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(made)
    else:
        print_record({"key": made["key"]} | {name: value for name, value in made.items() if value is not None})
        remark("Keep the key: it is not shown again.")
