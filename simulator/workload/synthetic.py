"""Workloads that are made up, from arguments or a TOML file:

    name = "burst"
    rate_rps = 8.0
    duration_s = 600.0
    process = "gamma"               # poisson (the default) | gamma | weibull | constant
    cv = 2.0                        # of the gaps, for gamma and weibull

    [prompt]                        # see simulator.workload.lengths
    distribution = "lognormal"
    median = 900
    sigma = 1.0
    [output]
    distribution = "exponential"
    mean = 128
    cap = 1024

    [[bursts]]                      # everybody sends 3 times as much for a minute
    from_s = 120
    until_s = 180
    factor = 3.0
    [[floods]]                      # one tenant sends 10 times as much
    tenant = "acme"
    from_s = 300
    until_s = 400
    factor = 10.0
    [[prefixes]]                    # half of the requests begin with one of 4 prompts of their tenant
    share = 0.5
    groups = 4
    tokens = 1024                   # a multiple of 512, before the drawn prompt
    [tenants.acme]                  # and [classes.NAME] as in simulator.workload.tenants; or: mix = "default"
    share = 0.2

Arrivals, lengths, tenants, prefixes and floods are drawn apart: with a flood or without, the other requests are the
same to the token, so what the flood does to others is a paired difference.
"""

from __future__ import annotations

import heapq
import math
import random
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

import msgspec

from simulator.errors import BadSynthetic
from simulator.records import PREFIX_TOKENS, Arrival, Workload
from simulator.workload.lengths import Lengths, drawer
from simulator.workload.max_tokens import asked_tokens
from simulator.workload.processes import MOST_CV, Process, instants
from simulator.workload.tenants import TenantMix, load_mix, mix_from_tables

__all__ = ["Burst", "Flood", "Prefixes", "Synthetic", "generate", "load_synthetic"]


class Burst(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All arrivals come `factor` times as often in [from_s, until_s)."""

    from_s: float
    until_s: float
    factor: float


class Flood(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tenant sends `factor` times as much in [from_s, until_s), the others as before."""

    tenant: str
    from_s: float
    until_s: float
    factor: float


class Prefixes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A share of the requests begins with one of `groups` prefixes of its tenant, each as likely."""

    share: float
    groups: int
    tokens: int


class Synthetic(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is made up. `prompt` is each request's own part; a prefix comes before it."""

    rate_rps: float
    duration_s: float
    prompt: Lengths
    output: Lengths
    name: str = "synthetic"
    process: Process = "poisson"
    cv: float = 1.0
    bursts: tuple[Burst, ...] = ()
    floods: tuple[Flood, ...] = ()
    prefixes: tuple[Prefixes, ...] = ()


def load_synthetic(path: str | Path) -> tuple[Synthetic, TenantMix]:
    """A made-up workload and its tenants, from a file.

    :raises BadSynthetic: the file cannot be read, a key is missing or unknown, or a value impossible.
    :raises BadTenants: so are its tenants.
    """
    path = Path(path)
    try:
        tables: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadSynthetic(f"{path}: cannot be read as TOML: {error}") from error
    own: dict[str, Any] = {key: tables.pop(key) for key in ("tenants", "classes") if key in tables}
    named = tables.pop("mix", None)
    if own and named is not None:
        raise BadSynthetic(f"{path}: has a mix, {named!r}, and tenants of its own; one of the two is needed")
    if named is not None and not isinstance(named, str):
        raise BadSynthetic(f"{path}: mix is {named!r}; the name of a mix is needed")
    try:
        spec = msgspec.convert({"name": path.stem} | tables, type=Synthetic)
        _check(spec)
    except msgspec.ValidationError as error:
        raise BadSynthetic(f"{path}: {error}") from error
    except BadSynthetic as error:
        raise BadSynthetic(f"{path}: {error}") from None
    return spec, mix_from_tables(path.stem, own) if own else load_mix(named or "default")


def generate(
    spec: Synthetic, *, tenants: TenantMix | None = None, seed: int = 0, max_tokens_factor: float | None = None
) -> Workload:
    """The workload of a seed.

    :param tenants: drawn by share for each arrival; None: the mix `default`.
    :param max_tokens_factor: see `asked_tokens`.
    :raises BadSynthetic: a value of the spec is impossible, or no arrival falls into the duration.
    :raises BadTenants: no tenant of the mix has a share.
    """
    _check(spec)
    mix = load_mix("default") if tenants is None else tenants
    shares = {name: each.share for name, each in mix.tenants.items()}
    streams = [_stream(spec, mix, "base", mix.drawer(seed=seed), spec.rate_rps, seed, None)]
    for number, flood in enumerate(spec.floods):
        if not shares.get(flood.tenant):
            raise BadSynthetic(f"floods.tenant is {flood.tenant!r}; a tenant of mix {mix.name} with a share is needed")
        more = spec.rate_rps * shares[flood.tenant] / math.fsum(shares.values()) * (flood.factor - 1)
        streams.append(_stream(spec, mix, f"flood{number}", partial(str, flood.tenant), more, seed, flood))
    drawn = list(heapq.merge(*streams, key=lambda each: each.at_s))
    if not drawn:
        raise BadSynthetic(
            f"{spec.rate_rps} requests/s for {spec.duration_s} s gave no arrival; more of either is needed"
        )
    asked = asked_tokens(((each.tenant, each.output_tokens) for each in drawn), factor=max_tokens_factor)
    arrivals = [msgspec.structs.replace(each, max_tokens=asked(each.tenant, each.output_tokens)) for each in drawn]
    known = {each.tenant for each in arrivals}
    return Workload(
        name=spec.name,
        arrivals=arrivals,
        tenants={name: each.tenant for name, each in mix.tenants.items() if name in known},
    )


def _stream(
    spec: Synthetic,
    mix: TenantMix,
    label: str,
    tenant: Callable[[], str],
    rate_rps: float,
    seed: int,
    flood: Flood | None,
) -> Iterator[Arrival]:
    """Arrivals of one process, their max_tokens still open. `label` begins their ids and seeds their draws."""

    def rng(purpose: str) -> random.Random:
        return random.Random(f"{purpose} {label} {seed}")

    prompt, output = drawer("prompt", spec.prompt, rng("prompts")), drawer("output", spec.output, rng("outputs"))
    prefix = _prefixer(spec.prefixes, list(mix.tenants), rng("prefixes"))
    begin_s, end_s = (0.0, spec.duration_s) if flood is None else (flood.from_s, min(flood.until_s, spec.duration_s))
    steps = [(burst.from_s - begin_s, burst.until_s - begin_s, burst.factor) for burst in spec.bursts]
    when = instants(
        spec.process, spec.cv, rate_rps=rate_rps, duration_s=end_s - begin_s, steps=steps, rng=rng("arrivals")
    )
    mark = "" if flood is None else f"{label}-"
    for number, at_s in enumerate(when):
        name = tenant()
        ids, shared = prefix(name)
        yield Arrival(f"{mark}{number}", begin_s + at_s, name, shared + prompt(), output(), 0, ids)


def _prefixer(
    choices: tuple[Prefixes, ...], tenants: list[str], rng: random.Random
) -> Callable[[str], tuple[tuple[int, ...], int]]:
    """Draws (block ids, tokens) of the prefix of a tenant's request. Ids are the same in every stream."""
    begin_at: dict[tuple[str, int], int] = {}
    free = 0
    for tenant in tenants:
        for number, choice in enumerate(choices):
            begin_at[tenant, number] = free
            free += choice.groups * (choice.tokens // PREFIX_TOKENS)

    def draw(tenant: str) -> tuple[tuple[int, ...], int]:
        point = rng.random()
        for number, choice in enumerate(choices):
            point -= choice.share
            if point < 0:
                blocks = choice.tokens // PREFIX_TOKENS
                begin = begin_at[tenant, number] + rng.randrange(choice.groups) * blocks
                return tuple(range(begin, begin + blocks)), choice.tokens
        return (), 0

    return draw


def _check(spec: Synthetic) -> None:
    for name in ("rate_rps", "duration_s"):
        value = getattr(spec, name)
        if not math.isfinite(value) or value <= 0:
            raise BadSynthetic(f"{name} is {value}; a finite number above 0 is needed")
    if spec.process not in get_args(Process):
        raise BadSynthetic(f"process is {spec.process!r}; it is one of {', '.join(get_args(Process))}")
    if not 1 / MOST_CV <= spec.cv <= MOST_CV:
        raise BadSynthetic(f"cv is {spec.cv}; from {1 / MOST_CV:.3f} to {MOST_CV:g} is needed")
    for kind, spans in (("bursts", spec.bursts), ("floods", spec.floods)):
        least = 0.0 if kind == "bursts" else 1.0
        for span in spans:
            if not 0 <= span.from_s < span.until_s or span.from_s >= spec.duration_s:
                raise BadSynthetic(
                    f"{kind} from {span.from_s} s until {span.until_s} s; they begin within [0, {spec.duration_s}) "
                    "and end later"
                )
            if not math.isfinite(span.factor) or span.factor <= least:
                raise BadSynthetic(f"{kind}.factor is {span.factor}; a finite number above {least:g} is needed")
    for each in spec.prefixes:
        if not 0 < each.share <= 1:
            raise BadSynthetic(f"prefixes.share is {each.share}; above 0 and at most 1 is needed")
        if each.groups < 1:
            raise BadSynthetic(f"prefixes.groups is {each.groups}; at least 1 is needed")
        if each.tokens < 1 or each.tokens % PREFIX_TOKENS:
            raise BadSynthetic(f"prefixes.tokens is {each.tokens}; a multiple of {PREFIX_TOKENS} is needed")
    if math.fsum(each.share for each in spec.prefixes) > 1 + 1e-9:
        raise BadSynthetic("prefixes have shares of more than 1 together")
    drawer("prompt", spec.prompt, random.Random(0))
    drawer("output", spec.output, random.Random(0))
