"""The options of `headgate simulate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import click

from policies.admission.verdict import AdmissionKind
from policies.catalog import CATALOG, DEFAULT, Placement
from policies.config import Batching, Order, Preemption
from simulator.devices import device_names
from simulator.simulation import Knowledge
from simulator.textbook.workload import Strategy, example_names
from simulator.workload import mix_names

__all__ = ["simulation_options"]

_ABOVE_ZERO = click.FloatRange(0, min_open=True)


def _choice(kind: Any) -> click.Choice[str]:
    return click.Choice(list(get_args(kind)))


_OPTIONS = (
    click.option(
        "--trace", type=click.Path(), help="Requests: CSV (ours or Azure's) or JSON lines (Mooncake), plain or gzip."
    ),
    click.option("--synthetic", type=click.Path(), help="Requests made up as a TOML file says, instead of --trace."),
    click.option(
        "--workload",
        type=click.Path(),
        help=f"A small workload in whole steps (JSON, or {', '.join(example_names())}): prints who runs when.",
    ),
    click.option(
        "--policy",
        "policy",
        multiple=True,
        metavar="NAME",
        help=f"Who decides; may be given several times: {', '.join(CATALOG)}. [default: {DEFAULT}] "
        f"With --workload: {', '.join(get_args(Strategy))}. [default: all]",
    ),
    click.option("--batching", type=_choice(Batching), help="Change this part of each policy."),
    click.option("--order", type=_choice(Order), help="Change this part of each policy."),
    click.option("--admission", type=_choice(AdmissionKind), help="Change this part of each policy."),
    click.option("--preemption", type=_choice(Preemption), help="Change this part of each policy."),
    click.option("--placement", type=_choice(Placement), help="Change this part of each policy."),
    click.option("--set", "changes", multiple=True, metavar="PART=VALUE", help="Change any part: chunk_tokens=512."),
    click.option(
        "--tenants",
        help=f"Who they are and what they are promised: a TOML file, or {', '.join(mix_names())}. [default: default, "
        "or what --synthetic says itself]",
    ),
    click.option(
        "--load",
        multiple=True,
        type=_ABOVE_ZERO,
        help="Arrivals come so many times as fast; may be given several times. [default: 1]",
    ),
    click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Workers of the model."),
    click.option(
        "--device",
        default="llama2-70b-h100-tp4",
        show_default=True,
        help=f"What they run on: a file of `headgate profile`, or {', '.join(device_names())}.",
    ),
    click.option(
        "--knowledge",
        default="history",
        show_default=True,
        type=_choice(Knowledge),
        help="What admission knows of output lengths.",
    ),
    click.option(
        "--step-noise",
        default=0.0,
        show_default=True,
        type=click.FloatRange(0),
        help="Sigma of a lognormal factor on step times.",
    ),
    click.option(
        "--stragglers",
        default=0.0,
        show_default=True,
        type=click.FloatRange(0, 1),
        help="Share of the steps that take five times as long.",
    ),
    click.option(
        "--length-noise",
        default=0.0,
        show_default=True,
        type=click.FloatRange(0),
        help="Sigma of a lognormal factor on what --knowledge oracle tells.",
    ),
    click.option(
        "--kv-scale", default=1.0, show_default=True, type=_ABOVE_ZERO, help="Times the KV blocks of the device."
    ),
    click.option("--slo-scale", default=1.0, show_default=True, type=_ABOVE_ZERO, help="Times all that is promised."),
    click.option("--from-s", default=0.0, type=click.FloatRange(0), help="Only arrivals from there on."),
    click.option("--until-s", type=_ABOVE_ZERO, help="Only arrivals before."),
    click.option(
        "--counterfactual",
        default=0,
        type=click.IntRange(0),
        metavar="N",
        help="Judge N refusals and N admissions: runs that differ in that one decision say which of them were false.",
    ),
    click.option("--seed", default=0, show_default=True, help="Of all that is drawn."),
    click.option(
        "--transfer",
        type=click.IntRange(0),
        help="With --workload, disaggregated: steps that KV takes. [default: what the file says]",
    ),
    click.option(
        "--csv", "csv_path", type=click.Path(dir_okay=False), help="Write what became of every request to this file."
    ),
    click.option("--plot", type=click.Path(file_okay=False), help="Write pictures into this folder."),
)


def simulation_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """All of them."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
