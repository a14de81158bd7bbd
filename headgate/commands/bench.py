"""`headgate bench`: play a workload against a running stack, and say whose contract was kept."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
from rich.console import Console

from headgate.client import AdminClient, read_endpoints
from headgate.client_options import client_options
from headgate.commands.simulate import readable
from headgate.errors import HeadgateError
from headgate.output import print_json, remark
from headgate.replay import Target, replay
from headgate.simulation_output import write_outcomes
from headgate.simulation_progress import Bar
from policies.vocabulary import Tenant
from simulator.experiment.cell import Cell, workload_of
from simulator.metrics import measure
from simulator.records import Result, Workload
from simulator.tables import details

__all__ = ["command"]

_ABOVE_ZERO = click.FloatRange(0, min_open=True)


@click.command(
    "bench",
    epilog="Example: headgate bench --trace azure.csv --until-s 60 --load 0.5, then the same with headgate simulate",
)
@click.option("--trace", required=True, type=click.Path(), help="Requests: CSV (ours or Azure's) or JSON lines.")
@click.option("--tenants", default="default", show_default=True, help="Who they are: a TOML file, or a mix by name.")
@click.option("--load", default=1.0, show_default=True, type=_ABOVE_ZERO, help="Requests come so many times as fast.")
@click.option("--from-s", default=0.0, show_default=True, type=click.FloatRange(0), help="Begin there in the trace.")
@click.option("--until-s", type=_ABOVE_ZERO, help="End there in the trace.")
@click.option("--seed", default=0, show_default=True, help="Of the tenants that arrivals are given.")
@click.option("--csv", "csv_path", type=click.Path(), help="Write what became of each request.")
@client_options
def command(
    trace: str,
    tenants: str,
    load: float,
    from_s: float,
    until_s: float | None,
    seed: int,
    csv_path: str | None,
    data: str,
    admin_url: str | None,
    as_json: bool,
) -> None:
    """Play a workload against a running stack as its tenants' clients would, and say whose contract was kept.

    Tenants that the stack lacks are created with the contracts of the workload; those it has keep their own. Each gets
    a key for the time of the run. Every request asks for exactly as many tokens as it has in the trace.
    """
    with readable():
        workload = workload_of(
            Cell(trace=trace, tenants=tenants, device="mock", seed=seed, from_s=from_s, until_s=until_s)
        )
    endpoints = read_endpoints(Path(data))
    if endpoints is None:
        raise HeadgateError(f"no stack is running for --data {data}: start one with `headgate serve`")
    with AdminClient(data=Path(data), admin_url=admin_url) as admin, _keys(admin, workload.tenants) as keys:
        result = _play(workload, Target(url=endpoints.api, model=_model(endpoints.api, keys), keys=keys), load)
    if csv_path:
        write_outcomes(Path(csv_path), [result])
        remark(f"wrote {csv_path}")
    figures = measure(result)
    if as_json:
        print_json(figures)
    else:
        Console().print(details(figures))


def _play(workload: Workload, target: Target, load: float) -> Result:
    with Bar() as bar:
        return asyncio.run(replay(workload, target, load=load, progress=lambda share: bar.show(share, "sending")))


@contextmanager
def _keys(admin: AdminClient, tenants: Mapping[str, Tenant]) -> Iterator[dict[str, str]]:
    """A key for every tenant, revoked afterwards."""
    known = {tenant["name"] for tenant in admin.get("tenants")["tenants"]}
    made: dict[str, str] = {}
    keys: dict[str, str] = {}
    try:
        for name, tenant in tenants.items():
            if name not in known:
                admin.post("tenants", _order(tenant))
            key = admin.post("keys", {"tenant": name})
            made[name], keys[name] = str(key["id"]), str(key["key"])
        yield keys
    finally:
        for key_id in made.values():
            admin.delete(f"keys/{quote(key_id, safe='')}")


def _order(tenant: Tenant) -> dict[str, Any]:
    contract = tenant.contract
    order: dict[str, Any] = {"name": tenant.name, "tier": contract.tier, "weight": contract.weight}
    if contract.tier != "flex":
        order |= {
            "ttft_ms": contract.ttft_ms,
            "tpot_ms": contract.tpot_ms,
            "ttft_per_1k_ms": contract.ttft_per_1k_ms,
        }
    return {name: value for name, value in order.items() if value is not None}


def _model(api: str, keys: Mapping[str, str]) -> str:
    """The first model that the stack serves."""
    import httpx  # what `--help` does not need

    key = next(iter(keys.values()))
    try:
        answer = httpx.get(f"{api}/v1/models", headers={"authorization": f"Bearer {key}"}, trust_env=False)
        return str(answer.raise_for_status().json()["data"][0]["id"])
    except (httpx.HTTPError, LookupError, ValueError) as error:
        raise HeadgateError(f"the stack at {api} does not say which model it serves: {error}") from error
