"""Fairness between tenants: VTC's bound, floods, and who pays for a shared prefix.

    python -m benchmarks.experiments.fairness [bound] [flood] [shared] [--traces DIR]

Deterministic. Takes about two minutes on one core; `bound` also runs vtc_lmsys_arena_27tenants.csv where DIR has it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from benchmarks.experiments._runs import arguments, interval, run, show, write
from policies.vocabulary import Contract, Limits, Tenant
from simulator.devices import load_device, scaled_kv
from simulator.plots.style import PALETTE, QUIET, dress, figure
from simulator.records import Arrival, Device, Outcome, Result, Workload
from simulator.service import in_device_seconds, in_tokens, longest_backlog, service, widest_gap
from simulator.workload import generate, load_mix, load_trace
from simulator.workload.lengths import Lognormal
from simulator.workload.synthetic import Flood, Synthetic
from simulator.workload.tenants import MixedTenant, TenantMix

__all__ = ["bound", "flood", "shared"]

OPT = "opt-13b-a100"
LLAMA = "llama2-70b-h100-tp4"


# VTC's bound


def backlog(*, weights: tuple[float, float] = (1.0, 1.0), requests: int = 600) -> Workload:
    """Two tenants that both send far more than they can get: chats with long outputs, documents with long prompts."""
    rng = random.Random("backlog")
    arrivals: list[Arrival] = []
    for number in range(requests):
        at_s = number * 0.02
        prompt = max(1, round(rng.lognormvariate(4.0, 0.8)))
        output = max(1, min(1000, round(rng.lognormvariate(5.0, 0.8))))
        arrivals.append(Arrival(f"c{number}", at_s, "chats", prompt, output, 1024))
        prompt = max(1, min(4000, round(rng.lognormvariate(7.0, 0.6))))
        output = max(1, min(200, round(rng.lognormvariate(3.5, 0.5))))
        arrivals.append(Arrival(f"d{number}", at_s, "documents", prompt, output, 256))
    tenants = {
        name: Tenant(name=name, contract=Contract(weight=weight))
        for name, weight in zip(("chats", "documents"), weights, strict=True)
    }
    return Workload(name="backlog", arrivals=arrivals, tenants=tenants)


def bound(traces: Path | None) -> None:
    """The widest difference of service of tenants that are backlogged, against the theorem's."""
    begun = time.perf_counter()
    device = load_device(OPT)
    works: list[tuple[str, Workload, Device, float]] = [
        ("two tenants", backlog(), device, 1.0),
        ("two tenants, weights 1 and 3", backlog(weights=(1.0, 3.0)), device, 1.0),
    ]
    if traces is not None:
        trace = load_trace(traces / "vtc_lmsys_arena_27tenants.csv", tenants=load_mix("uncontracted"))
        works.append(("vtc_lmsys at 6x", trace, scaled_kv(device, 0.25), 6.0))
    rows: list[dict[str, object]] = []
    drawn: dict[tuple[str, str], Result] = {}
    for label, work, on, load in works:
        for policy in ("chunked", "vtc", "vtc-edf", "headgate"):
            result = run(work, on, policy, keep_steps=True, load=load)
            drawn[label, policy] = result
            rows.append({"workload": label, "policy": policy} | _gaps(work, result, on))
    show("VTC's bound: the widest difference of weighted service between two backlogged tenants", rows)
    page, grid = figure(3.6, columns=3)
    tenants = {arrival.id: arrival.tenant for arrival in works[0][1].arrivals}
    for axes, policy in zip(grid, ("chunked", "vtc", "headgate"), strict=True):
        ledger = service(drawn["two tenants", policy].steps_kept, tenants, in_device_seconds(device))[::10]
        for number, name in enumerate(("chats", "documents")):
            axes.plot(
                [at for at, _ in ledger],
                [total.get(name, 0.0) for _, total in ledger],
                color=PALETTE[number],
                label=name,
            )
        span = longest_backlog(drawn["two tenants", policy].outcomes, ("chats", "documents"))
        axes.axvspan(*span, color=QUIET, alpha=0.12, linewidth=0)
        axes.set_ylim(0, 110)
        dress(axes, title=policy, x="time (s); grey: both wait", y="device-seconds" if policy == "chunked" else "")
    grid[0].legend(fontsize=8, frameon=False, loc="upper left")
    write("vtc_bound", rows, page, about="python -m benchmarks.experiments.fairness bound --traces DIR", begun=begun)


def _gaps(work: Workload, result: Result, device: Device) -> dict[str, object]:
    """Over all pairs of the eight tenants that ask for the most, each while both were backlogged."""
    tenants = {arrival.id: arrival.tenant for arrival in work.arrivals}
    weights = {name: tenant.contract.weight for name, tenant in work.tenants.items()}
    asked: dict[str, int] = {}
    for arrival in work.arrivals:
        asked[arrival.tenant] = asked.get(arrival.tenant, 0) + arrival.prompt_tokens + arrival.output_tokens
    most = sorted(asked, key=lambda name: -asked[name])[:8]
    tokens = service(result.steps_kept, tenants, in_tokens)
    seconds = service(result.steps_kept, tenants, in_device_seconds(device))
    widest, widest_s, longest_s = 0.0, 0.0, 0.0
    for one, other in combinations(most, 2):
        from_s, until_s = longest_backlog(result.outcomes, (one, other))
        span = {"from_s": from_s, "until_s": until_s}
        widest = max(widest, widest_gap(tokens, one, other, weights=weights, **span))
        widest_s = max(widest_s, widest_gap(seconds, one, other, weights=weights, **span))
        longest_s = max(longest_s, until_s - from_s)
    prompt = max(arrival.prompt_tokens for arrival in work.arrivals)
    least = min(weights[name] for name in most)
    return {
        "backlog_s": longest_s,
        "gap_tokens": widest,
        "bound_tokens": 2 * max(prompt, 2 * device.blocks * 16) / least,
        "gap_device_s": widest_s,
        "served": sum(outcome.finished_s is not None for outcome in result.outcomes) / len(result.outcomes),
    }


# A flood

SEEDS = range(5)
PROMISE = Contract(tier="priority", ttft_ms=1500, tpot_ms=60)
FLEX = Contract(tier="flex", ttft_ms=30_000)
#: Two and a half times what a tenant sends as a rule.
RATE = Limits(rpm=60)
#: Label, policy, what is changed in it, and the committed rate of every tenant.
POLICIES: tuple[tuple[str, str, dict[str, object], Limits], ...] = (
    ("headgate", "headgate", {}, Limits()),
    ("headgate, steered", "headgate", {"admission.fair_most": 0.7}, Limits()),
    ("headgate, 60 a minute", "headgate", {}, RATE),
    ("headgate, flex above that", "headgate", {"admission.above_rate": True}, RATE),
    ("chunked (FCFS)", "chunked", {}, Limits()),
    ("edf", "edf", {}, Limits()),
    ("vtc", "vtc", {}, Limits()),
    ("vtc-edf", "vtc-edf", {}, Limits()),
)


def crowd(flooder: Contract, *, factor: float, flooded: bool, limits: Limits) -> tuple[Synthetic, TenantMix]:
    """Four tenants with 0.4 requests/s each, of which one sends `factor` times as much from 60 s to 180 s."""
    names = ("one", "two", "three", "flood")
    mix = TenantMix(
        name="crowd",
        tenants={
            name: MixedTenant(
                tenant=Tenant(name=name, contract=flooder if name == "flood" else PROMISE, limits=limits), share=1.0
            )
            for name in names
        },
    )
    spec = Synthetic(
        name="crowd",
        rate_rps=1.6,
        duration_s=240,
        prompt=Lognormal(median=700, sigma=0.8, cap=6000),
        output=Lognormal(median=150, sigma=0.7, cap=800),
        floods=(Flood(tenant="flood", from_s=60, until_s=180, factor=factor),) if flooded else (),
    )
    return spec, mix


def others(result: Result, *, from_s: float = 60.0, until_s: float = 190.0) -> float:
    """Share of the requests of those that do not flood whose contract was kept, around the flood."""
    members = [o for o in result.outcomes if o.tenant != "flood" and from_s <= o.arrived_s < until_s]
    return sum(outcome.met for outcome in members) / len(members)


def flood(_: Path | None) -> None:
    """What a flood of one tenant does to the others: paired differences over seeds."""
    begun = time.perf_counter()
    device = load_device(LLAMA)
    rows: list[dict[str, object]] = []
    alone: dict[tuple[str, str, int], float] = {}
    for kind, contract, factor in (
        ("10x, same class", PROMISE, 10.0),
        ("10x, flex", FLEX, 10.0),
        ("50x, same class", PROMISE, 50.0),
    ):
        for label, policy, changes, limits in POLICIES:
            pairs, floods, firsts = [], [], []
            for seed in SEEDS:
                key = (contract.tier, label, seed)
                if key not in alone:
                    spec, mix = crowd(contract, factor=factor, flooded=False, limits=limits)
                    alone[key] = others(run(generate(spec, tenants=mix, seed=seed), device, policy, changes, seed=seed))
                spec, mix = crowd(contract, factor=factor, flooded=True, limits=limits)
                result = run(generate(spec, tenants=mix, seed=seed), device, policy, changes, seed=seed)
                pairs.append((alone[key], others(result)))
                floods.append(_flooder(result.outcomes))
                firsts.append(_first_tokens(result.outcomes))
            change, wide = interval([after - before for before, after in pairs])
            rows.append(
                {
                    "flood": kind,
                    "policy": label,
                    "others_alone": interval([before for before, _ in pairs])[0],
                    "others_flooded": interval([after for _, after in pairs])[0],
                    "change": change,
                    "plus_minus": wide,
                    "others_first_tokens": interval(firsts)[0],
                    "flooder_kept_per_s": interval(floods)[0],
                }
            )
    show("A flood: attainment of the other tenants' offered requests", rows)
    page, grid = figure(3.6, columns=3)
    for axes, kind in zip(grid, dict.fromkeys(str(row["flood"]) for row in rows), strict=True):
        part = [row for row in rows if row["flood"] == kind]
        before = [100 * float(str(row["others_alone"])) for row in part]
        after = [100 * float(str(row["others_flooded"])) for row in part]
        errors = [100 * float(str(row["plus_minus"])) for row in part]
        places = range(len(part))
        colours = [PALETTE[0] if str(row["policy"]).startswith("headgate") else PALETTE[1] for row in part]
        axes.bar(places, after, width=0.62, color=colours, yerr=errors, capsize=2)
        axes.plot(places, before, "_", color="#000000", ms=16, label="without the flood")
        axes.set_xticks(
            list(places),
            [str(row["policy"]) for row in part],
            rotation=40,
            fontsize=7,
            ha="right",
            rotation_mode="anchor",
        )
        axes.set_ylim(0, 103)
        dress(axes, title=kind, y="contracts kept (%)" if kind.endswith("same class") and "10x" in kind else "")
    grid[0].legend(fontsize=7, frameon=False, loc="center right")
    write("flood", rows, page, about="python -m benchmarks.experiments.fairness flood", begun=begun)


def _first_tokens(outcomes: Sequence[Outcome]) -> float:
    """Share of the others' first tokens that were in time: without a pace, the flood's decodes may still slow them."""
    kept = [o.kept[0] is True for o in outcomes if o.tenant != "flood" and 60 <= o.arrived_s < 190]
    return sum(kept) / len(kept)


def _flooder(outcomes: Sequence[Outcome]) -> float:
    return sum(o.met for o in outcomes if o.tenant == "flood" and 60 <= o.arrived_s < 180) / 120


# A shared prefix


def prompts_alike(requests: int = 400) -> Workload:
    """Two tenants with prompts of 2,304 tokens: of one tenant they all begin with the same 2,048."""
    arrivals = []
    for number in range(requests):
        arrivals.append(Arrival(f"s{number}", number * 0.01, "shared", 2304, 32, 32, (0, 1, 2, 3)))
        arrivals.append(Arrival(f"o{number}", number * 0.01, "own", 2304, 32, 32))
    tenants = {name: Tenant(name=name) for name in ("shared", "own")}
    return Workload(name="alike", arrivals=arrivals, tenants=tenants)


def shared(_: Path | None) -> None:
    """Both are backlogged: how many requests each gets through, and for how much of the device."""
    begun = time.perf_counter()
    device, work = load_device(LLAMA), prompts_alike()
    tenants = {arrival.id: arrival.tenant for arrival in work.arrivals}
    rows: list[dict[str, object]] = []
    for policy in ("chunked", "vtc", "headgate"):
        for cache in (True, False):
            changes = {"prefix_cache": cache, "batch_size": 32} | (
                {"admission": "none"} if policy == "headgate" else {}
            )
            result = run(work, device, policy, changes, keep_steps=True)
            span = longest_backlog(result.outcomes, ("shared", "own"))
            ledger = service(result.steps_kept, tenants, in_device_seconds(device))
            ends = {name: sum(o.tenant == name and _within(o, span) for o in result.outcomes) for name in work.tenants}
            total = next(total for at, total in reversed(ledger) if at <= span[1])
            rows.append(
                {
                    "policy": policy,
                    "prefix_cache": cache,
                    "backlog_s": span[1],
                    "shared_requests": ends["shared"],
                    "own_requests": ends["own"],
                    "shared_device_s": total["shared"],
                    "own_device_s": total["own"],
                }
            )
    show("A shared prefix of 2,048 of 2,304 tokens: while both tenants are backlogged", rows)
    page, grid = figure(2.9, columns=2)
    cached = [row for row in rows if row["prefix_cache"]]
    for axes, key, title in zip(
        grid, ("requests", "device_s"), ("Requests, while both wait", "Device-seconds of them"), strict=True
    ):
        for number, name in enumerate(("shared", "own")):
            ys = [float(str(row[f"{name}_{key}"])) for row in cached]
            at = [i + 0.36 * (number - 0.5) for i in range(len(ys))]
            axes.bar(at, ys, width=0.34, color=PALETTE[number], label=f"{name} prompts")
        axes.set_xticks(range(len(cached)), [str(row["policy"]) for row in cached])
        dress(axes, title=title)
    grid[1].legend(fontsize=8, frameon=False)
    write("shared_prefix", rows, page, about="python -m benchmarks.experiments.fairness shared", begun=begun)


def _within(outcome: Outcome, span: tuple[float, float]) -> bool:
    return outcome.finished_s is not None and span[0] <= outcome.finished_s <= span[1]


def main() -> None:
    """What the command line asks for."""
    experiments = {"bound": bound, "flood": flood, "shared": shared}
    chosen, traces = arguments(__doc__ or "", list(experiments))
    for name in chosen:
        experiments[name](traces)


if __name__ == "__main__":
    main()
