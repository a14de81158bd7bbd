"""What each policy of the catalog was invented for, shown in kind on our scheduler and devices.

    python -m benchmarks.experiments.claims [mlfq] [prefix] [roles] [migration] [rejection] [--traces DIR]

Deterministic. Takes about four minutes on one core; `prefix` needs mooncake_conversation.jsonl.gz in DIR.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, pstdev

from matplotlib.artist import Artist
from msgspec.structs import replace

from benchmarks.experiments._runs import arguments, interval, mean, run, show, simulation, write
from policies.vocabulary import Contract, Tenant
from simulator.devices import load_device, scaled_kv
from simulator.kinds import make_simulation
from simulator.overrides import changed_policies
from simulator.plots.style import PALETTE, dress, figure, legend_below
from simulator.quantiles import quantile
from simulator.records import Result, StepRecord
from simulator.workload import generate, load_mix, load_trace
from simulator.workload.lengths import Constant, Lognormal
from simulator.workload.synthetic import Synthetic
from simulator.workload.tenants import MixedTenant, TenantMix

__all__ = ["migration", "mlfq", "prefix", "rejection", "roles"]

NOBODY = load_mix("uncontracted")


def promised(*, ttft_ms: float, tpot_ms: float) -> TenantMix:
    """One tenant with that contract."""
    tenant = Tenant(name="reader", contract=Contract(ttft_ms=ttft_ms, tpot_ms=tpot_ms))
    return TenantMix(name="promised", tenants={"reader": MixedTenant(tenant=tenant, share=1.0)})


def latencies(results: Sequence[Result]) -> dict[str, float]:
    """To the first token and to the end, of all requests of some runs."""
    outcomes = [outcome for each in results for outcome in each.outcomes]
    ttfts = sorted(t for o in outcomes if (t := o.measured_ttft_s) is not None)
    ends = sorted(o.finished_s - o.arrived_s for o in outcomes if o.finished_s is not None)
    return {
        "ttft_mean_s": fmean(ttfts),
        "ttft_p99_s": quantile(ttfts, 0.99) or 0.0,
        "end_mean_s": fmean(ends),
        "end_p50_s": quantile(ends, 0.5) or 0.0,
        "end_p99_s": quantile(ends, 0.99) or 0.0,
    }


# Skip-join MLFQ against first come, first served


def mlfq(_: Path | None) -> None:
    """Prompts and outputs with heavy tails, 16 rows at once."""
    begun = time.perf_counter()
    device = load_device("opt-13b-a100")
    kinds: tuple[tuple[str, str, dict[str, object]], ...] = (
        ("chunked (FCFS)", "chunked", {}),
        ("mlfq", "mlfq", {}),
        ("mlfq, promoted after 30 s, not 3", "mlfq", {"starvation_s": 30.0}),
    )
    rows: list[dict[str, object]] = []
    for rate in (2.0, 2.25, 2.5, 2.75):
        spec = Synthetic(
            rate_rps=rate,
            duration_s=400,
            prompt=Lognormal(median=200, sigma=1.4, cap=8192),
            output=Lognormal(median=100, sigma=1.2, cap=2048),
        )
        for label, policy, changes in kinds:
            results = [
                run(generate(spec, tenants=NOBODY, seed=seed), device, policy, {"batch_size": 16, **changes})
                for seed in range(3)
            ]
            rows.append({"requests_per_s": rate, "policy": label} | latencies(results))
    show("Skip-join MLFQ against FCFS (heavy tails, 16 rows, opt-13b-a100)", rows)
    page, grid = figure(3.4, columns=3)
    handles = {}
    for axes, (key, title) in zip(
        grid,
        (("ttft_mean_s", "First token, mean"), ("end_p50_s", "End, median"), ("end_p99_s", "End, p99")),
        strict=True,
    ):
        for number, (label, _policy, _changes) in enumerate(kinds):
            line = [row for row in rows if row["policy"] == label]
            xs, ys = ([float(str(row[k])) for row in line] for k in ("requests_per_s", key))
            colour = PALETTE[(1, 0, 5)[number]]
            (handles[label],) = axes.plot(xs, ys, color=colour, marker="os^"[number], ms=4)
        axes.set_ylim(bottom=0)
        dress(axes, title=title, x="requests/s", y="s")
    legend_below(page, list(handles.values()), list(handles))
    write("mlfq", rows, page, about="python -m benchmarks.experiments.claims mlfq", begun=begun)


# Longest prefix first, and to where the prefix is


def prefix(traces: Path | None) -> None:
    """The first ten minutes of a trace of conversations, on four workers with 32 rows each."""
    if traces is None:
        print("\nprefix: left out, it needs --traces")
        return
    begun = time.perf_counter()
    trace = load_trace(traces / "mooncake_conversation.jsonl.gz", tenants=NOBODY, until_s=600.0)
    device = load_device("llama2-70b-h100-tp8")
    rows: list[dict[str, object]] = []
    for load in (0.4, 0.48, 0.56):
        for order in ("fcfs", "lpm"):
            for placement in ("best-fit", "prefix-aware"):
                result = run(
                    trace,
                    device,
                    "lpm",
                    {"order": order, "placement": placement, "batch_size": 32},
                    workers=4,
                    load=load,
                )
                hits = sum(o.cached_tokens for o in result.outcomes) / sum(o.prompt_tokens for o in result.outcomes)
                figures: dict[str, object] = {"order": order, "placement": placement, "load": load, "hit_rate": hits}
                rows.append(figures | latencies([result]))
    show("Longest prefix match against FCFS (mooncake_conversation, 4 workers of 32 rows)", rows)
    page, grid = figure(3.4, columns=2)
    handles = {}
    for number, (order, placement) in enumerate(
        (order, placement) for placement in ("best-fit", "prefix-aware") for order in ("fcfs", "lpm")
    ):
        line = [row for row in rows if (row["order"], row["placement"]) == (order, placement)]
        for axes, key in zip(grid, ("hit_rate", "ttft_mean_s"), strict=True):
            xs, ys = ([float(str(row[k])) for row in line] for k in ("load", key))
            (handles[f"{order}, {placement}"],) = axes.plot(
                xs, ys, color=PALETTE[number], marker="os^D"[number], ms=4, linestyle="-" if order == "lpm" else "--"
            )
    for axes, title, unit in zip(
        grid, ("Prompt tokens from the cache", "First token, mean"), ("share", "s"), strict=True
    ):
        axes.set_ylim(bottom=0)
        dress(axes, title=title, x="load (x arrivals of the trace)", y=unit)
    legend_below(page, list(handles.values()), list(handles), columns=4)
    write("prefix", rows, page, about="python -m benchmarks.experiments.claims prefix --traces DIR", begun=begun)


# Prefill and decode apart


def roles(_: Path | None) -> None:
    """Summaries: long prompts, short outputs, 3 s to the first token and 40 ms a token, on four workers."""
    begun = time.perf_counter()
    device = replace(load_device("llama2-70b-h100-tp8"), tokens_per_step=16_384)
    mix = promised(ttft_ms=3000, tpot_ms=40)
    fleets = (
        ("continuous", "continuous", 0),
        ("chunked 2048", "chunked", 0),
        ("chunked 512", "sarathi", 0),
        ("time-budgeted", "time-budgeted", 0),
        ("3 prefill, 1 decodes", "disaggregated", 3),
        ("2 prefill, 2 decode", "disaggregated", 2),
        ("2 and 2, lent (splitwise)", "splitwise", 2),
    )
    rows: list[dict[str, object]] = []
    for rate in (2.0, 3.0, 4.0, 5.0, 6.0):
        spec = Synthetic(
            rate_rps=rate,
            duration_s=200,
            prompt=Lognormal(median=3000, sigma=0.8, cap=16_384),
            output=Lognormal(median=100, sigma=0.6, cap=512),
        )
        for label, policy, prefills in fleets:
            results = []
            for seed in range(2):
                policies = replace(changed_policies(policy, {"placement": "least-loaded"}), prefill_workers=prefills)
                results.append(
                    make_simulation(generate(spec, tenants=mix, seed=seed), device, policies, workers=4).run()
                )
            outcomes = [outcome for each in results for outcome in each.outcomes]
            ttfts = sorted(t for o in outcomes if (t := o.measured_ttft_s) is not None)
            tpots = sorted(t for o in outcomes if (t := o.measured_tpot_s) is not None)
            rows.append(
                {
                    "fleet": label,
                    "requests_per_s": rate,
                    "ttft_p90_s": quantile(ttfts, 0.9),
                    "ttft_p99_s": quantile(ttfts, 0.99),
                    "tpot_p90_ms": 1000 * (quantile(tpots, 0.9) or 0.0),
                    "tpot_p99_ms": 1000 * (quantile(tpots, 0.99) or 0.0),
                    "both_kept": sum(o.met for o in outcomes) / len(outcomes),
                    "sent_gb": fmean(each.transferred_bytes / 1e9 for each in results),
                }
            )
    show("Prefill and decode apart (prompts of 3,000 in the median, 4 workers)", rows)
    page, grid = figure(3.8, columns=3)
    handles = {}
    for number, (label, _policy, _prefills) in enumerate(fleets):
        line = [row for row in rows if row["fleet"] == label]
        for axes, key in zip(grid, ("both_kept", "ttft_p90_s", "tpot_p90_ms"), strict=True):
            xs, ys = ([float(str(row[k])) for row in line] for k in ("requests_per_s", key))
            (handles[label],) = axes.plot(
                xs, ys, color=PALETTE[number], marker="os^Dv*P"[number], ms=4, linestyle="--" if number < 4 else "-"
            )
    dress(grid[0], title="Both promises kept", x="requests/s", y="share")
    dress(grid[1], title="First token, p90", x="requests/s", y="s")
    dress(grid[2], title="Pace, p90", x="requests/s", y="ms")
    grid[1].set_ylim(0, 8)
    grid[2].set_ylim(20, 110)
    legend_below(page, list(handles.values()), list(handles), columns=4)
    write("roles", rows, page, about="python -m benchmarks.experiments.claims roles", begun=begun)


# Live migration


def migration(_: Path | None) -> None:
    """Four workers with little KV, placed by freeness, with requests that move and with none that does."""
    begun = time.perf_counter()
    device = scaled_kv(load_device("opt-13b-a100"), 0.25)
    seeds = range(5)
    rows: list[dict[str, object]] = []
    for rate in (5.0, 5.5, 6.0):
        spec = Synthetic(
            rate_rps=rate,
            duration_s=300,
            prompt=Lognormal(median=200, sigma=1.2, cap=4096),
            output=Lognormal(median=250, sigma=1.0, cap=2048),
        )
        for label, policy, changes in (
            ("round-robin", "chunked", {"placement": "round-robin"}),
            ("freeness", "chunked", {"placement": "freeness"}),
            ("freeness, migration", "llumnix", {}),
        ):
            runs = [
                simulation(generate(spec, tenants=NOBODY, seed=seed), device, policy, changes, workers=4)
                for seed in seeds
            ]
            results = [each.run() for each in runs]
            preempted, wide = interval([float(sum(o.preemptions for o in each.outcomes)) for each in results])
            rows.append(
                {
                    "requests_per_s": rate,
                    "placement": label,
                    "moved": fmean(len(getattr(each, "moved", ())) for each in runs),
                    "preemptions": preempted,
                    "plus_minus": wide,
                    "lost_tokens": fmean(each.lost_tokens for each in results),
                    "ttft_mean_s": fmean(latencies([each])["ttft_mean_s"] for each in results),
                    "ttft_p99_s": fmean(latencies([each])["ttft_p99_s"] for each in results),
                    "end_p99_s": fmean(latencies([each])["end_p99_s"] for each in results),
                }
            )
    show("Live migration (opt-13b on 40 GB, 4 workers, means of 5 seeds)", rows)
    page, grid = figure(3.2, columns=3)
    labels = ("round-robin", "freeness", "freeness, migration")
    handles: dict[str, Artist] = {}
    for axes, key in zip(grid, ("preemptions", "ttft_mean_s", "ttft_p99_s"), strict=True):
        for number, label in enumerate(labels):
            line = [row for row in rows if row["placement"] == label]
            ys = [float(str(row[key])) for row in line]
            at = [i + 0.27 * (number - 1) for i in range(len(line))]
            handles[label] = axes.bar(at, ys, width=0.25, color=PALETTE[(1, 4, 0)[number]])[0]
        axes.set_xticks(range(3), ["5", "5.5", "6"])
    dress(grid[0], title="Preemptions", x="requests/s", y="in 300 s")
    dress(grid[1], title="First token, mean", x="requests/s", y="s")
    dress(grid[2], title="First token, p99", x="requests/s", y="s")
    legend_below(page, list(handles.values()), list(handles))
    write("migration", rows, page, about="python -m benchmarks.experiments.claims migration", begun=begun)


# Early rejection

PREFILLS, DECODES = 16, 2


def rejection(_: Path | None) -> None:
    """Far more than the decode workers bear, behind prefills of 1.5 s each: nobody refused, by now, by prediction."""
    begun = time.perf_counter()
    device = replace(load_device("llama2-70b-h100-tp4"), tokens_per_step=16_384)
    mix = promised(ttft_ms=10_000, tpot_ms=38)
    spec = Synthetic(rate_rps=16, duration_s=240, prompt=Constant(tokens=12_000), output=Constant(tokens=100))
    instants = [i * 0.5 for i in range(480)]
    rows: list[dict[str, object]] = []
    lines: dict[str, list[int]] = {}
    for kind in ("none", "mooncake-naive", "mooncake"):
        swings, figures = [], []
        for seed in range(3):
            policies = replace(changed_policies("disaggregated", {"admission": kind}), prefill_workers=PREFILLS)
            work = generate(spec, tenants=mix, seed=seed)
            result = make_simulation(work, device, policies, workers=PREFILLS + DECODES, keep_steps=True).run()
            line = decoding(result.steps_kept, instants)
            lines.setdefault(kind, line)
            settled = line[80:]
            swings.append(pstdev(settled) / fmean(settled))
            figures.append(
                (
                    sum(o.decision == "admitted" for o in result.outcomes) / len(result.outcomes),
                    sum(o.met for o in result.outcomes) / 240,
                    min(settled),
                    max(settled),
                )
            )
        rows.append(
            {
                "admission": kind,
                "admitted": mean([each[0] for each in figures]),
                "kept_per_s": mean([each[1] for each in figures]),
                "decoding_least": min(each[2] for each in figures),
                "decoding_most": max(each[3] for each in figures),
                "swing": fmean(swings),  # standard deviation over the mean
            }
        )
    show(f"Early rejection ({PREFILLS} workers prefill, {DECODES} decode, 16 requests/s)", rows)
    page, (axes,) = figure(3.0)
    for number, kind in enumerate(("none", "mooncake-naive", "mooncake")):
        axes.plot(instants, lines[kind], color=("#999999", PALETTE[1], PALETTE[0])[number], linewidth=1.4, label=kind)
    axes.set_ylim(0, 68)
    axes.set_xlim(0, 240)
    axes.legend(fontsize=8, frameon=False, loc="upper right", ncols=3)
    dress(axes, title="Rows that decode, on both decode workers", x="time (s)", y="rows")
    write("rejection", rows, page, about="python -m benchmarks.experiments.claims rejection", begun=begun)


def decoding(steps: Sequence[StepRecord], instants: Sequence[float]) -> list[int]:
    """How many rows decode at each instant, on all workers that do not prefill."""
    total = [0] * len(instants)
    for number in range(PREFILLS, PREFILLS + DECODES):
        own = [step for step in steps if step.worker == f"w{number}"]
        begins = [step.begun_s for step in own]
        for i, instant in enumerate(instants):
            at = bisect_right(begins, instant) - 1
            if at >= 0 and own[at].ended_s > instant:
                total[i] += len(own[at].requests)
    return total


def main() -> None:
    """What the command line asks for."""
    experiments = {"mlfq": mlfq, "prefix": prefix, "roles": roles, "migration": migration, "rejection": rejection}
    chosen, traces = arguments(__doc__ or "", list(experiments))
    for name in chosen:
        experiments[name](traces)


if __name__ == "__main__":
    main()
