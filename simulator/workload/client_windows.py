"""Workloads from what a service publishes of its clients: the rate and burstiness of each, window by window.

The CSV is that of ServeGen's parameters (NSDI'26): client, window_start_s, rate_rps, iat_cv, iat_family (Gamma,
Weibull or Exponential). Every client is a tenant. In a window its number of arrivals is Poisson with mean rate x window
and their gaps are of its family and coefficient of variation, stretched to fill the window: so rates hold however
bursty a client is. Lengths are not published so; they are drawn from distributions, or in pairs from a trace.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from simulator.errors import BadSynthetic, BadTrace
from simulator.records import Arrival, Workload
from simulator.workload.csv_format import split_line
from simulator.workload.fields import FieldError, arrival, number
from simulator.workload.lengths import Lengths, drawer
from simulator.workload.lines import numbered_lines
from simulator.workload.max_tokens import asked_tokens
from simulator.workload.processes import Process, gaps, poisson_count
from simulator.workload.tenants import TenantMix, load_mix

__all__ = ["from_client_windows"]

_COLUMNS = ("client", "window_start_s", "rate_rps", "iat_cv", "iat_family")
_FAMILIES: dict[str, Process] = {"gamma": "gamma", "weibull": "weibull", "exponential": "poisson", "poisson": "poisson"}
#: Estimates from a handful of arrivals are beyond what can be drawn.
_LEAST_CV, _MOST_CV = 0.1, 12.0


class _Window(NamedTuple):
    client: str
    start_s: float
    rate_rps: float
    cv: float
    family: Process


def from_client_windows(
    path: str | Path,
    *,
    from_s: float = 0.0,
    until_s: float,
    lengths: tuple[Lengths, Lengths] | Workload,
    rate_rps: float | None = None,
    window_s: float = 600.0,
    tenants: TenantMix | None = None,
    seed: int = 0,
    max_tokens_factor: float | None = None,
) -> Workload:
    """The arrivals of [from_s, until_s), with from_s as their 0.

    :param until_s: windows that begin in [from_s, until_s) are taken, and cut at until_s.
    :param lengths: distributions of prompts and outputs, or a workload whose pairs are drawn, each as likely.
    :param rate_rps: mean of all clients together: their rates are scaled to it, ratios kept. None: as published.
    :param tenants: classes of the clients; None: the mix `default`.
    :raises BadTrace: with the line, if the file is wrong.
    :raises BadSynthetic: no window or no arrival is in the span.
    """
    path = Path(path)
    if not 0 <= from_s < until_s or not math.isfinite(until_s) or not window_s > 0:
        raise BadSynthetic(
            f"windows of {window_s} s from {from_s} s until {until_s} s; a span from 0 or later is needed"
        )
    mix = load_mix("default") if tenants is None else tenants
    windows = [each for each in _read(path) if from_s <= each.start_s < until_s]
    expected = math.fsum(each.rate_rps * min(window_s, until_s - each.start_s) for each in windows)
    if expected <= 0:
        raise BadSynthetic(f"{path}: no client sends from {from_s} s until {until_s} s")
    scale = 1.0 if rate_rps is None else rate_rps * (until_s - from_s) / expected
    if not scale > 0 or not math.isfinite(scale):
        raise BadSynthetic(f"rate_rps is {rate_rps}; a finite number above 0 is needed")
    drawn: list[tuple[float, str]] = []
    for each in windows:
        # Seeded by client and window: a span within another has the same arrivals.
        rng = random.Random(f"clients {each.client} {each.start_s} {seed}")
        length_s = min(window_s, until_s - each.start_s)
        begin_s = each.start_s - from_s
        drawn.extend((begin_s + at_s, each.client) for at_s in _arrivals(each, each.rate_rps * scale, length_s, rng))
    if not drawn:
        raise BadSynthetic(f"{path}: {expected * scale:.3g} arrivals were expected and none was drawn; more are needed")
    drawn.sort()
    draw = _lengths(lengths, seed)
    known = {}
    for _at_s, client in drawn:
        if client not in known:
            tenant = mix.tenant(client, seed=seed)
            if tenant is None:
                raise BadTrace(path, None, f"client {client!r} is not in mix {mix.name}, and the mix has no classes")
            known[client] = tenant
    sized = [(at_s, client, *draw()) for at_s, client in drawn]
    asked = asked_tokens(((client, output) for _, client, _, output in sized), factor=max_tokens_factor)
    arrivals = [
        Arrival(str(i), at_s, client, prompt, output, asked(client, output))
        for i, (at_s, client, prompt, output) in enumerate(sized)
    ]
    return Workload(name=path.name.partition(".")[0], arrivals=arrivals, tenants=known)


def _arrivals(window: _Window, rate_rps: float, length_s: float, rng: random.Random) -> Iterator[float]:
    count = poisson_count(rate_rps * length_s, rng)
    if not count:
        return
    gap = gaps(window.family, min(_MOST_CV, max(_LEAST_CV, window.cv)), rng)
    ends = list(accumulate(gap() for _ in range(count + 1)))
    # All gaps at 0 (possible for very bursty few): together, anywhere.
    total = ends[-1]
    if total <= 0:
        at_s = length_s * rng.random()
        yield from [at_s] * count
        return
    # The window may begin within a gap: else every client of every window would begin with one.
    shift = rng.random()
    yield from sorted(math.fmod(end / total + shift, 1.0) * length_s for end in ends[:-1])


def _lengths(lengths: tuple[Lengths, Lengths] | Workload, seed: int) -> Callable[[], tuple[int, int]]:
    if isinstance(lengths, Workload):
        pairs = [(each.prompt_tokens, each.output_tokens) for each in lengths.arrivals]
        if not pairs:
            raise BadSynthetic(f"{lengths.name} has no arrival to take lengths from")
        choice = random.Random(f"pairs {seed}").choice
        return lambda: choice(pairs)
    prompt = drawer("prompt", lengths[0], random.Random(f"prompts {seed}"))
    output = drawer("output", lengths[1], random.Random(f"outputs {seed}"))
    return lambda: (prompt(), output())


def _read(path: Path) -> Iterator[_Window]:
    lines = numbered_lines(path)
    line, header = next(lines, (0, ""))
    if not line:
        raise BadTrace(path, None, "the file is empty; it has a line for each window of each client")
    names = [name.strip().lower() for name in header.split(",")]
    missing = [name for name in _COLUMNS if name not in names]
    if missing:
        raise BadTrace(path, line, f"column {', '.join(missing)} is missing; windows have {', '.join(_COLUMNS)}")
    at = [names.index(name) for name in _COLUMNS]
    for line, text in lines:
        fields = split_line(path, line, text)
        if len(fields) != len(names):
            raise BadTrace(path, line, f"{len(fields)} fields in {text[:200]!r}; the header names {len(names)} columns")
        client, start, rate, cv, family = (fields[i].strip() for i in at)
        try:
            if not client:
                raise FieldError("client is empty; a name is needed")
            if family.lower() not in _FAMILIES:
                raise FieldError(f"iat_family is {family!r}; it is one of Gamma, Weibull, Exponential")
            rate_rps, variation = number("rate_rps", rate), number("iat_cv", cv)
            if rate_rps < 0 or variation < 0:
                raise FieldError(f"rate_rps is {rate}, iat_cv is {cv}; neither can be negative")
            start_s = arrival("window_start_s", number("window_start_s", start))
        except FieldError as error:
            raise BadTrace(path, line, str(error)) from None
        yield _Window(client, start_s, rate_rps, variation, _FAMILIES[family.lower()])
