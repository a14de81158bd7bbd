"""`headgate usage`: settled tokens, as the ledger has them."""

from __future__ import annotations

import datetime
from pathlib import Path

import click

from headgate.client import AdminClient
from headgate.client_options import client_options
from headgate.output import emit, emit_csv

__all__ = ["command"]

_BY = ("tenant", "day", "key", "request")
_SUMS = {
    "requests": "requests",
    "prompt_tokens": "prompt tokens",
    "output_tokens": "output tokens",
    "cached_tokens": "of them cached",
    "unsettled": "unsettled",
}


@click.command(name="usage", epilog="Example: headgate usage --tenant acme --since 2026-11-01 --by day --csv")
@click.option("--tenant", help="Only this tenant.")
@click.option("--since", type=click.DateTime(["%Y-%m-%d"]), help="First UTC day.")
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), help="Last UTC day.")
@click.option("--by", type=click.Choice(_BY), default="tenant", show_default=True, help="What a row sums up.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=1000, show_default=True, help="Rows at most.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, with the names of the fields in its first line.")
@client_options
def command(
    tenant: str | None,
    since: datetime.datetime | None,
    until: datetime.datetime | None,
    by: str,
    limit: int,
    as_csv: bool,
    data: str,
    admin_url: str | None,
    as_json: bool,
) -> None:
    """Sum up requests and tokens, by tenant, day, key or request."""
    if as_csv and as_json:
        raise click.UsageError("give --csv or --json, not both")
    if since is not None and until is not None and until < since:
        raise click.UsageError(f"--until {_day(until)} is before --since {_day(since)}")
    with AdminClient(data=Path(data), admin_url=admin_url) as admin:
        rows = admin.get("usage", tenant=tenant, since=_day(since), until=_day(until), by=by, limit=limit)["usage"]
    columns = {"tenant": "tenant"} | ({} if by == "tenant" else {by: by}) | _SUMS
    if as_csv:
        emit_csv(rows, columns=list(columns))
        return
    emit(rows, columns=columns, as_json=as_json, empty="Nothing was used.")


def _day(instant: datetime.datetime | None) -> str | None:
    return None if instant is None else instant.strftime("%Y-%m-%d")
