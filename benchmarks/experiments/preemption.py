"""What one preemption costs, by swap and by recompute: measured in simulations, beside what the cost rule says.

    python -m benchmarks.experiments.preemption

Rows decode in all slots of a device, one of them of a lower class; a short request of a higher class comes and takes
its slot. What that costs is the time by which all rows end later than with a link that takes no time: seconds of rows,
the currency of the rule (`policies.giving`). Varied: the context of the victim, the link, and how much of its context
is a prefix that others hold. Without such a prefix there is no prefix cache, in which the victim's blocks would
survive; with one, the urgent request is so large that it takes them. `swap` copies all that a row has; the rule, and so
the hybrid, only what comes free by it. Deterministic; ten seconds on one core.
"""

from __future__ import annotations

import time
from math import nan
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from msgspec.structs import replace

from benchmarks.experiments._runs import arguments, run, show, write
from policies.giving import Costs, Link
from policies.kv import KvMemory, blocks_for
from policies.rows import Row
from policies.running import Running
from policies.vocabulary import BLOCK_SIZE, Contract, Tenant
from simulator.devices import load_device
from simulator.plots.style import PALETTE, dress, figure, legend_below
from simulator.records import PREFIX_TOKENS, Arrival, Device, Workload
from simulator.requests import BlockNames, make_request
from simulator.step_times import SampledStepTime
from simulator.worker import worker_spec

__all__ = ["crossover"]

DEVICES = ("opt-13b-a100", "llama2-70b-h100-tp4")
CONTEXTS = (256, 1024, 4096, 8192)
#: Rows that decode beside the victim, and their context.
BESIDE, BESIDE_CONTEXT = 7, 512
OUTPUTS = 400
#: A request that gets the victim's place does so within this.
AT_ONCE_S = 0.5


def _workload(context: int, shared: int, *, urgent: int = 16) -> Workload:
    """`shared` tokens of the victim's context are held by one of those beside it too. `urgent`: prompt tokens."""
    low, high = Contract(tier="flex"), Contract(tier="priority")
    tenants = {"low": Tenant(name="low", contract=low), "high": Tenant(name="high", contract=high)}
    prefix = tuple(range(shared // PREFIX_TOKENS))
    arrivals = [Arrival("victim", 0.0, "low", context, OUTPUTS, OUTPUTS, prefix)]
    for number in range(BESIDE):
        holds = number == 0 and shared
        tokens = shared + 1 if holds else BESIDE_CONTEXT
        arrivals.append(Arrival(f"beside-{number}", 0.0, "high", tokens, OUTPUTS, OUTPUTS, prefix if holds else ()))
    # Comes when all decode, and is gone soon.
    arrivals.append(Arrival("urgent", 8.0, "high", urgent, 16, 16))
    named = {name: replace(tenant, group="one") for name, tenant in tenants.items()}
    return Workload(name="one-preemption", arrivals=arrivals, tenants=named)


def _ends_s(device: Device, workload: Workload, mode: str, *, cache: bool) -> float | None:
    """The sum of the instants at which all end; None: the victim did not give way at once."""
    changes = {"order": "contract", "preempt_for_tier": True, "preemption": mode, "chunk_tokens": 0}
    result = run(workload, device, "chunked", {**changes, "prefix_cache": cache, "watermark": 0.0})
    urgent, victim = result.outcomes[-1], next(outcome for outcome in result.outcomes if outcome.id == "victim")
    if victim.preemptions != 1 or urgent.scheduled_s is None or urgent.scheduled_s - urgent.arrived_s > AT_ONCE_S:
        return None
    return sum(outcome.finished_s for outcome in result.outcomes if outcome.finished_s is not None)


def _taken_s(device: Device, workload: Workload, mode: str, *, cache: bool) -> float:
    """As `_ends_s`, where it is known that the victim gives way."""
    ends_s = _ends_s(device, workload, mode, cache=cache)
    assert ends_s is not None, (device.name, workload.arrivals[0].prompt_tokens, mode)
    return ends_s


def _largest(device: Device, context: int, shared: int) -> Workload:
    """With an urgent request as large as finds room where the victim was."""
    for extra in range(128, -1, -4):
        workload = _workload(context, shared, urgent=context - shared + extra * BLOCK_SIZE)
        if _ends_s(device, workload, "swap", cache=True) is not None:
            return workload
    raise AssertionError(f"{device.name}: no request of {context - shared} tokens takes the place of the victim")


def _blocks(workload: Workload, shared: int) -> int:
    """So many that the urgent request needs those of the victim, and nobody else ever does."""
    most = [blocks_for(each.prompt_tokens + each.output_tokens) for each in workload.arrivals[:-1]]
    return sum(most) - shared // BLOCK_SIZE + BESIDE


def _predicted(device: Device, workload: Workload) -> tuple[float, float]:
    """What the rule says of the same preemption: (recompute, swap), seconds of rows."""
    spec = worker_spec(device)
    names = BlockNames(workload.arrivals, workload.tenants)
    kv, running = KvMemory(spec.blocks, spec.host_blocks, names=names), Running(spec.slots, max_preemptions=2)
    rows = []
    for number, arrival in enumerate(workload.arrivals[:-1]):
        row = Row(make_request(arrival, workload.tenants[arrival.tenant]), sequence=number, now=0.0)
        kv.start(row, kv.look(row), 1)
        running.enter(row)
        row.computed, row.left = arrival.prompt_tokens, row.left - 1
        row.tokens.append(0)
        running.prefilled(row)
        kv.register(row)
        rows.append(row)
    costs = Costs(spec, SampledStepTime(device.step_time), kv=kv, running=running, link=Link(spec))
    ways = costs.ways(rows[0], len(rows[0].blocks), now=0.0)
    return ways[0].cost_s, ways[1].cost_s


def crossover() -> None:
    """The table, and its picture."""
    begun = time.perf_counter()
    rows: list[dict[str, Any]] = []
    for name in DEVICES:
        plain = load_device(name)
        cases = [(context, 1.0, 0) for context in CONTEXTS]
        cases += [(4096, scale, 0) for scale in (0.5, 0.25, 0.125, 0.0625, 0.03125)]
        cases += [(4096, 1.0, shared) for shared in (1024, 2048, 3072, 3584)]
        for context, link, shared in cases:
            device = replace(plain, slots=BESIDE + 1, swap_bytes_per_s=plain.swap_bytes_per_s * link)
            workload = _workload(context, shared)
            if shared:
                device = replace(device, blocks=_blocks(workload, shared))
                workload = _largest(device, context, shared)
            free = _taken_s(replace(device, swap_bytes_per_s=1e18), workload, "swap", cache=shared > 0)
            modes = ("recompute", "swap", "hybrid")
            again, copied, hybrid = (_taken_s(device, workload, mode, cache=shared > 0) - free for mode in modes)
            said_again, said_copied = _predicted(device, workload)
            rows.append(
                {
                    "device": name,
                    "context": context,
                    "link_gb_per_s": device.swap_bytes_per_s / 1e9,
                    "shared": shared,
                    "recompute_s": again,
                    "recompute_rule_s": said_again,
                    "swap_s": copied,
                    "swap_rule_s": said_copied,
                    "hybrid_s": hybrid,
                    "cheaper": "swap" if copied < again else "recompute",
                    "rule": "swap" if said_copied < said_again else "recompute",
                }
            )
    show("One preemption, seconds of rows", rows)
    print(f"  of the two, the rule names the cheaper in {sum(r['cheaper'] == r['rule'] for r in rows)} of {len(rows)}")
    write("preemption_crossover", rows, _picture(rows), about=(__doc__ or "").split("\n")[0], begun=begun)


def _picture(rows: list[dict[str, Any]]) -> Figure:
    page, grid = figure(5.2, rows=2, columns=3)
    for line, name in enumerate(DEVICES):
        mine = [row for row in rows if row["device"] == name]
        full = max(row["link_gb_per_s"] for row in mine)
        panels = (
            ("context", "tokens of context", [r for r in mine if r["link_gb_per_s"] == full and not r["shared"]]),
            ("link_gb_per_s", "link, GB/s", [r for r in mine if r["context"] == 4096 and not r["shared"]]),
            (
                "shared",
                "tokens that others hold",
                [r for r in mine if r["context"] == 4096 and r["link_gb_per_s"] == full],
            ),
        )
        for axes, (key, label, shown) in zip(grid[3 * line : 3 * line + 3], panels, strict=True):
            shown = sorted(shown, key=lambda row: row[key])
            for number, way in enumerate(("recompute", "swap")):
                x = [row[key] for row in shown]
                axes.plot(x, [r[f"{way}_s"] for r in shown], "o", color=PALETTE[number], ms=4, label=f"{way}, measured")
                axes.plot(
                    x, [r[f"{way}_rule_s"] for r in shown], color=PALETTE[number], lw=1, label=f"{way}, by the rule"
                )
            if key == "shared":
                taken = [r["hybrid_s"] or nan for r in shown[1:]]  # for a slot alone it gives nothing away
                axes.plot(x[1:], taken, "x", color=PALETTE[2], ms=5, label="hybrid, measured")
            else:
                axes.set_xscale("log", base=2)
                axes.yaxis.set_minor_formatter(NullFormatter())
                axes.set_xticks(x, [f"{value:.3g}" if value < 1000 else f"{value}" for value in x])
            axes.set_yscale("log")
            dress(
                axes, title=name if key == "context" else "", x=label, y="seconds of rows" if key == "context" else ""
            )
    legend_below(page, *grid[2].get_legend_handles_labels())
    return page


if __name__ == "__main__":
    arguments(__doc__ or "", ["crossover"])
    crossover()
