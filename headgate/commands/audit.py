"""`headgate audit`: who changed what, as the audit stream has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from headgate.client import AdminClient
from headgate.client_options import client_options
from headgate.output import emit, emit_csv

__all__ = ["command"]

_COLUMNS = ("time", "actor", "action", "target", "details")
#: Entries that are looked through for those of one tenant.
_LOOKED_THROUGH = 10_000


@click.command(name="audit", epilog="Example: headgate audit --tenant acme --limit 20")
@click.option("--tenant", help="Only changes of this tenant and its keys.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Entries at most.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, with the names of the fields in its first line.")
@client_options
def command(tenant: str | None, limit: int, as_csv: bool, data: str, admin_url: str | None, as_json: bool) -> None:
    """List the latest changes of tenants and keys, the newest first: time, actor, action, target, details."""
    if as_csv and as_json:
        raise click.UsageError("give --csv or --json, not both")
    with AdminClient(data=Path(data), admin_url=admin_url) as admin:
        entries = admin.get("audit", limit=_LOOKED_THROUGH if tenant else limit)["audit"]
        keys = {key["id"] for key in admin.get("keys")["keys"] if key["tenant"] == tenant} if tenant else set()
    rows = [entry for entry in entries if tenant is None or _concerns(entry, tenant, keys)][:limit]
    if as_json:
        emit(rows, columns=_COLUMNS, as_json=True)
        return
    lines = [{**row, "details": msgspec.json.encode(row["details"]).decode() if row["details"] else ""} for row in rows]
    if as_csv:
        emit_csv(lines, columns=_COLUMNS)
    else:
        emit(
            lines,
            columns=_COLUMNS,
            as_json=False,
            empty=f"No changes of tenant {tenant!r}." if tenant else "Nothing was changed yet.",
        )


def _concerns(entry: dict[str, Any], tenant: str, keys: set[str]) -> bool:
    """Whether it is about the tenant, or one of its keys. Those of a deleted tenant are still listed as its own."""
    if str(entry["action"]).startswith("tenant."):
        return bool(entry["target"] == tenant)
    return entry["target"] in keys or entry["details"].get("tenant") == tenant
