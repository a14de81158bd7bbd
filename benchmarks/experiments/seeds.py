"""The seeds of the field: what each idea of batching is for, shown on the real scheduler.

    python -m benchmarks.experiments.seeds [padding] [variance] [decode] [stalls] [--traces DIR]

Deterministic. Takes about a minute on one core; pictures go to docs/images, figures to benchmarks/results/experiments.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median, pstdev

from matplotlib.ticker import NullLocator
from msgspec.structs import replace

from benchmarks.experiments._runs import arguments, at_once, interval, run, show, write
from policies.vocabulary import Contract, Tenant
from simulator.devices import load_device, scaled_kv
from simulator.padding import padded_tokens, padded_workload, ragged_tokens
from simulator.plots.style import PALETTE, QUIET, dress, figure, legend_below
from simulator.quantiles import quantile
from simulator.records import Device, Result, Workload
from simulator.token_gaps import token_gaps
from simulator.workload import generate, load_trace
from simulator.workload.lengths import Lognormal, drawer
from simulator.workload.synthetic import Synthetic
from simulator.workload.tenants import MixedTenant, TenantMix, load_mix

__all__ = ["decode", "padding", "stalls", "variance"]

OPT = "opt-13b-a100"
LLAMA = "llama2-70b-h100-tp4"


# Padded against ragged


def padding(traces: Path | None) -> None:
    """One prompt of 2,048 and three of 128 in a static batch of 4; and 992 requests of a trace in batches of 32."""
    begun = time.perf_counter()
    whole = replace(load_device(OPT), tokens_per_step=8192)
    works: list[tuple[Workload, int]] = [(at_once("2048 + 3 x 128", [(2048, 1), *[(128, 1)] * 3]), 4)]
    if traces is not None:
        trace = load_trace(
            traces / "azure2023_conv.csv", tenants=load_mix("uncontracted"), max_tokens_factor=1.0, limit=992
        )
        lengths = [(each.prompt_tokens, each.output_tokens) for each in trace.arrivals]
        works.append((at_once("azure2023_conv, 992 requests", lengths), 32))
    rows: list[dict[str, object]] = []
    for work, batch in works:
        # Of a device with room for the rectangle: padding is to cost time here, not room.
        device = whole if batch == 4 else replace(load_device(LLAMA), tokens_per_step=8192)
        useful = sum(each.output_tokens for each in work.arrivals)
        for kind, each in (("padded", padded_workload(work, batch)), ("ragged", work)):
            result = run(each, device, "static", {"batch_size": batch})
            prompts = [arrival.prompt_tokens for arrival in work.arrivals]
            batches = [prompts[i : i + batch] for i in range(0, len(prompts), batch)]
            count = padded_tokens if kind == "padded" else ragged_tokens
            rows.append(
                {
                    "workload": work.name,
                    "batch": batch,
                    "device": device.name,
                    "kind": kind,
                    "prompt_tokens": sum(map(count, batches)),
                    "computed_tokens": result.computed_tokens,
                    "seconds": result.ended_s,
                    "useful_tokens_per_s": useful / result.ended_s,
                }
            )
    show("Padded against ragged (static batches)", rows)
    page, grid = figure(2.6, columns=len(works))
    for axes, (work, batch) in zip(grid, works, strict=True):
        pair = [row for row in rows if row["workload"] == work.name]
        seconds = [float(str(row["seconds"])) for row in pair]
        axes.barh([1, 0], seconds, color=[PALETTE[1], PALETTE[0]], height=0.55)
        for at, row in zip((1, 0), pair, strict=True):
            axes.text(0, at + 0.34, f"{row['kind']}: {row['prompt_tokens']:,} prompt tokens", fontsize=8)
        axes.set_yticks([])
        axes.set_ylim(-0.4, 1.65)
        dress(axes, title=f"{work.name} (batches of {batch})", x="seconds of the device", grid="x")
    write("padding", rows, page, about="python -m benchmarks.experiments.seeds padding", begun=begun)


# Continuous over static, by the variance of outputs

REQUESTS = 1008  # whole batches of 28 and of 7
ROWS, ROWS_40GB = 28, 7
CAP = 1536
MEAN = 128
SEEDS = range(3)
OUTPUTS = ("constant", "uniform 64-192", "uniform 1-255", "exponential, cap 512", "exponential", "lognormal, sigma 1.3")


def outputs(kind: str, seed: int, requests: int = REQUESTS) -> list[int]:
    """Output lengths of mean 128 (by their distribution), of one of the kinds of OUTPUTS."""
    rng = random.Random(f"outputs {kind} {seed}")
    if kind == "constant":
        return [MEAN] * requests
    if kind.startswith("uniform"):
        low, high = (64, 192) if kind.endswith("64-192") else (1, 255)
        return [rng.randint(low, high) for _ in range(requests)]
    if kind.startswith("exponential"):
        # Cut at 512, draws of mean 130.5 have 128: m (1 - exp(-512 / m)).
        scale, cap = (130.5, 512) if kind.endswith("512") else (128.0, CAP)
        return [min(cap, max(1, round(rng.expovariate(1 / scale)))) for _ in range(requests)]
    draw = drawer("output", Lognormal(median=57.6, sigma=1.3, cap=CAP), rng)
    return [draw() for _ in range(requests)]


def variance(_: Path | None) -> None:
    """Anyscale's experiment (2023): 1,008 prompts of 512 tokens at once on one A100, OPT-13B; six distributions of the
    output length, all of mean 128."""
    begun = time.perf_counter()
    device = load_device(OPT)
    small = scaled_kv(device, 0.25)  # an A100 of 40 GB: 13 of 52 GB are left beside the weights
    rows: list[dict[str, object]] = []
    for kind in OUTPUTS:
        drawn = [outputs(kind, seed) for seed in SEEDS]
        cv = fmean(pstdev(one) / fmean(one) for one in drawn)
        alike = [at_once(kind, [(512, n) for n in one]) for one in drawn]
        asking = [at_once(kind, [(512, n) for n in one], max_tokens=CAP) for one in drawn]
        rows += _variance_rows("same rows", kind, cv, alike, device, ROWS, bound=True)
        rows += _variance_rows("rows that fit", kind, cv, asking, small, ROWS_40GB, bound=False)
    show("Tokens/s by the variance of output lengths (OPT-13B, one A100)", rows)
    page, grid = figure(3.5, columns=2)
    handles = {}
    for axes, setting in zip(grid, ("same rows", "rows that fit"), strict=True):
        for number, policy in enumerate(("dynamic", "continuous", "chunked")):
            line = [row for row in rows if row["setting"] == setting and row["policy"] == policy]
            xs = [float(str(row["cv"])) for row in line]
            ys = [float(str(row["over_static"])) for row in line]
            wide = [float(str(row["plus_minus"])) for row in line]
            low, high = [y - w for y, w in zip(ys, wide, strict=True)], [y + w for y, w in zip(ys, wide, strict=True)]
            axes.fill_between(xs, low, high, color=PALETTE[number], alpha=0.18, linewidth=0)
            dash = "--" if policy == "continuous" else "-"
            (handles[policy],) = axes.plot(xs, ys, color=PALETTE[number], marker="os^"[number], ms=4, linestyle=dash)
        axes.axhline(1, color=QUIET, linewidth=0.8)
        axes.set_ylim(bottom=0)
    dress(grid[0], title="28 rows each", x="coefficient of variation of output lengths", y="tokens/s over static")
    dress(grid[1], title="40 GB: 7 rows if static, else what fits", x="coefficient of variation of output lengths")
    legend_below(page, list(handles.values()), list(handles))
    write("variance", rows, page, about="python -m benchmarks.experiments.seeds variance", begun=begun)


def _variance_rows(
    setting: str, kind: str, cv: float, works: Sequence[Workload], device: Device, static_rows: int, *, bound: bool
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    base: list[float] = []
    for policy in ("static", "dynamic", "continuous", "chunked"):
        batch = static_rows if bound or policy in ("static", "dynamic") else 0
        results = [run(work, device, policy, {"batch_size": batch}) for work in works]
        rates = [sum(o.generated for o in each.outcomes) / each.ended_s for each in results]
        base = base or rates
        over, wide = interval([rate / one for rate, one in zip(rates, base, strict=True)])
        rows.append(
            {
                "setting": setting,
                "outputs": kind,
                "cv": cv,
                "policy": policy,
                "tokens_per_s": fmean(rates),
                "over_static": over,
                "plus_minus": wide,
            }
        )
    return rows


# Decodes in a batch


def decode(_: Path | None) -> None:
    """Steps of 1 to 256 rows that all decode."""
    begun = time.perf_counter()
    rows: list[dict[str, object]] = []
    for name in (LLAMA, OPT):
        device = load_device(name)
        for batch in (1, 2, 4, 8, 16, 32, 64, 128, 256):
            step_s = decode_step_s(device, batch)
            rows.append({"device": name, "rows": batch, "step_ms": 1000 * step_s, "tokens_per_s": batch / step_s})
    show("Decodes in a batch (contexts of 32 to 128 tokens)", rows)
    page, grid = figure(3.2, columns=2)
    lines = {}
    for number, name in enumerate((LLAMA, OPT)):
        line = [row for row in rows if row["device"] == name]
        xs = [int(str(row["rows"])) for row in line]
        for axes, key in zip(grid, ("tokens_per_s", "step_ms"), strict=True):
            ys = [float(str(row[key])) for row in line]
            (lines[name],) = axes.plot(xs, ys, color=PALETTE[number], marker="os"[number], ms=4)
    for axes in grid:
        axes.set_xscale("log", base=2)
        axes.set_xticks([1, 4, 16, 64, 256], ["1", "4", "16", "64", "256"])
    grid[0].set_yscale("log")
    grid[1].set_ylim(bottom=0)
    dress(grid[0], title="Throughput", x="rows", y="tokens/s")
    dress(grid[1], title="Time of a step", x="rows", y="ms")
    legend_below(page, list(lines.values()), list(lines))
    write("decode_batching", rows, page, about="python -m benchmarks.experiments.seeds decode", begun=begun)


def decode_step_s(device: Device, rows: int) -> float:
    """The median step that decodes so many rows, as it ran."""
    result = run(at_once("decode", [(32, 96)] * rows), device, "chunked", keep_steps=True)
    return median(s.ended_s - s.begun_s for s in result.steps_kept if len(s.requests) == rows and not any(s.prefill))


# Stalls

PACE_MS = 75.0
BUDGETS = (256, 512, 1024, 2048, 4096, 8192)
LONG = Synthetic(
    name="long prompts",
    rate_rps=1.0,
    duration_s=400.0,
    prompt=Lognormal(median=3000, sigma=0.8, cap=16_384),
    output=Lognormal(median=200, sigma=0.6, cap=1024),
)
ONE = TenantMix(
    name="one",
    tenants={
        "reader": MixedTenant(
            tenant=Tenant(name="reader", contract=Contract(ttft_ms=10_000, tpot_ms=PACE_MS)), share=1.0
        )
    },
)


def stalls(_: Path | None) -> None:
    """Long prompts beside running decodes: whole, in chunks of several budgets, and in chunks by time."""
    begun = time.perf_counter()
    device = replace(load_device(LLAMA), tokens_per_step=16_384)  # so that every prompt is whole under `continuous`
    settings: list[tuple[str, str, dict[str, object]]] = [("continuous", "continuous", {})]
    settings += [(f"chunked {budget}", "chunked", {"chunk_tokens": budget}) for budget in BUDGETS]
    settings.append(("time-budgeted", "time-budgeted", {}))
    rows: list[dict[str, object]] = []
    shown: dict[str, list[tuple[float, float]]] = {}
    for label, policy, changes in settings:
        results = [
            run(generate(LONG, tenants=ONE, seed=seed), device, policy, changes, keep_steps=True) for seed in range(3)
        ]
        gaps = [token_gaps(each.steps_kept, each.outcomes) for each in results]
        shown[label] = gaps[0]
        rows.append({"policy": label} | _stall_row(results, gaps))
    show(f"Stalls of running decodes (1 request/s, prompts of 3,000 in the median, {LLAMA})", rows)
    page, (left, right) = figure(3.6, columns=2)
    for number, label in enumerate(("continuous", "chunked 512", "time-budgeted")):
        part = [(at, 1000 * gap) for at, gap in shown[label] if 100 <= at < 200]
        step = max(1, len(part) // 6000)
        tall = [each for i, each in enumerate(part) if i % step == 0 or each[1] > 400]
        left.plot(*zip(*tall, strict=True), ".", ms=2, color=PALETTE[(1, 0, 2)[number]], label=label)
    left.legend(fontsize=8, frameon=False, markerscale=4, loc="upper right")
    dress(left, title="Every token of 100 s", x="time (s)", y="ms since the token before")
    for row in rows:
        label, x, y = str(row["policy"]), float(str(row["ttft_p99_s"])), float(str(row["itl_p99_ms"]))
        colour = PALETTE[1] if label == "continuous" else PALETTE[2] if label == "time-budgeted" else PALETTE[0]
        right.plot(x, y, "o", color=colour, ms=5)
        beside = (6, -10) if label == "continuous" else (6, 3)
        right.annotate(label.removeprefix("chunked "), (x, y), xytext=beside, textcoords="offset points", fontsize=8)
    right.set_xscale("log")
    right.xaxis.set_minor_locator(NullLocator())
    right.set_xticks([5, 10, 20, 40], ["5", "10", "20", "40"])
    right.set_xlim(4, 80)
    right.set_ylim(bottom=0)
    dress(right, title="What it costs (numbers: chunked, its budget)", x="p99 to the first token (s)", y="p99 gap (ms)")
    write("stalls", rows, page, about="python -m benchmarks.experiments.seeds stalls", begun=begun)


def _stall_row(results: Sequence[Result], gaps: Sequence[Sequence[tuple[float, float]]]) -> dict[str, object]:
    outcomes = [outcome for each in results for outcome in each.outcomes]
    apart = sorted(gap for each in gaps for _, gap in each)
    ttfts = sorted(t for o in outcomes if (t := o.measured_ttft_s) is not None)
    tpots = sorted(t for o in outcomes if (t := o.measured_tpot_s) is not None)

    def ms(values: Sequence[float], share: float) -> float:
        return 1000 * (quantile(values, share) or 0.0)

    return {
        "itl_p50_ms": ms(apart, 0.5),
        "itl_p99_ms": ms(apart, 0.99),
        "longest_gap_ms": 1000 * apart[-1],
        "over_200_ms": sum(gap > 0.2 for gap in apart) / len(apart),
        "tpot_p99_ms": ms(tpots, 0.99),
        "pace_kept": sum(tpot <= PACE_MS / 1000 for tpot in tpots) / len(tpots),
        "ttft_p50_s": quantile(ttfts, 0.5),
        "ttft_p99_s": quantile(ttfts, 0.99),
    }


def main() -> None:
    """What the command line asks for."""
    experiments = {"padding": padding, "variance": variance, "decode": decode, "stalls": stalls}
    chosen, traces = arguments(__doc__ or "", list(experiments))
    for name in chosen:
        experiments[name](traces)


if __name__ == "__main__":
    main()
