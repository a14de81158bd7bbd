"""Traces of real services as workloads. The format is recognised by content, plain or gzip:

    CSV   TIMESTAMP,ContextTokens,GeneratedTokens          Azure, 2023 and 2024
    CSV   arrival_s,tenant,prompt_tokens,output_tokens     `tenant` may be absent
    JSON lines {"timestamp": ms, "input_length": ..., "output_length": ..., "hash_ids": [...]}    Mooncake

Arrivals must be in order of time; equal ones are legal and keep the order of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from policies.vocabulary import Tenant
from simulator.errors import BadTrace, SimulatorError
from simulator.records import Arrival, Workload
from simulator.workload.csv_format import read_csv
from simulator.workload.fields import Row
from simulator.workload.lines import numbered_lines
from simulator.workload.max_tokens import asked_tokens
from simulator.workload.mooncake import read_mooncake, spread_over_ticks
from simulator.workload.tenants import TenantMix, load_mix

__all__ = ["load_trace"]


def load_trace(
    path: str | Path,
    *,
    tenants: TenantMix | None = None,
    seed: int = 0,
    max_tokens_factor: float | None = None,
    jitter: bool = True,
    skip_empty: bool = False,
    limit: int | None = None,
    until_s: float | None = None,
) -> Workload:
    """Reads a trace. The id of an arrival is its line in the file.

    :param tenants: who the tenants are; None: the mix `default`. A trace without a tenant column is given tenants of
        the mix by share, drawn for each arrival.
    :param seed: of all that is drawn: tenants, classes, and jitter.
    :param max_tokens_factor: see `asked_tokens`.
    :param jitter: spread the arrivals of a trace with coarse stamps (Mooncake's ticks of 3 s) over their ticks.
    :param skip_empty: leave out requests with an empty prompt or output, which some services record; otherwise they
        are errors.
    :param limit: so many requests at most, from the beginning of the file.
    :param until_s: only arrivals before.
    :raises BadTrace: with the line, if the file is wrong or nothing is left.
    :raises BadTenants: the mix has no tenants to draw.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise SimulatorError(f"limit is {limit}; at least one request is needed")
    mix = load_mix("default") if tenants is None else tenants
    rows = _within(_rows(path, jitter=jitter, seed=seed), path, skip_empty=skip_empty, limit=limit, until_s=until_s)
    kept: list[tuple[Row, str]] = []
    known: dict[str, Tenant] = {}
    draw = None
    for row in rows:
        name = row.tenant
        if name is None:
            draw = draw or mix.drawer(seed=seed)
            name = draw()
        if name not in known:
            tenant = mix.tenant(name, seed=seed)
            if tenant is None:
                raise BadTrace(path, row.line, f"tenant {name!r} is not in mix {mix.name}; it has {_some(mix)}")
            known[name] = tenant
        kept.append((row, name))
    if not kept:
        raise BadTrace(path, None, "no request is left; a trace has a line for each (see skip_empty and until_s)")
    asked = asked_tokens(((name, row.output_tokens) for row, name in kept), factor=max_tokens_factor)
    arrivals = [
        Arrival(
            str(row.line),
            row.at_s,
            name,
            row.prompt_tokens,
            row.output_tokens,
            asked(name, row.output_tokens),
            row.prefix,
        )
        for row, name in kept
    ]
    arrivals.sort(key=lambda arrival: arrival.at_s)  # jitter moves them past each other
    name = path.name.removesuffix(".gz").removesuffix(".csv").removesuffix(".jsonl")
    return Workload(name=name, arrivals=arrivals, tenants=known)


def _rows(path: Path, *, jitter: bool, seed: int) -> Iterator[Row]:
    lines = numbered_lines(path)
    first = next(lines, None)
    if first is None:
        raise BadTrace(path, None, "the file is empty; a trace has a line for each request")
    whole = chain([first], lines)
    if first[1].lstrip().startswith(("{", "[")):
        rows = read_mooncake(path, whole)
        return spread_over_ticks(rows, seed=seed) if jitter else rows
    return read_csv(path, whole)


def _within(
    rows: Iterator[Row], path: Path, *, skip_empty: bool, limit: int | None, until_s: float | None
) -> Iterator[Row]:
    seen = False
    left = limit
    for row in rows:
        seen = True
        if row.prompt_tokens < 1 or row.output_tokens < 1:
            if skip_empty:
                continue
            what = "prompt" if row.prompt_tokens < 1 else "output"
            raise BadTrace(
                path, row.line, f"the {what} has 0 tokens; at least 1 is needed (skip_empty leaves such requests out)"
            )
        if until_s is None or row.at_s < until_s:
            yield row
            if left is not None:
                left -= 1
                if left == 0:
                    return
    if not seen:
        raise BadTrace(path, None, "there is a header but no request; a trace has a line for each")


def _some(mix: TenantMix) -> str:
    names = list(mix.tenants)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") + ", and no classes"
