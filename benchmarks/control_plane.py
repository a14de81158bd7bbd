"""What everything around the device costs: added latency, requests/s beside LiteLLM, memory of each process.

    python -m benchmarks.control_plane --litellm /path/to/venv/bin/litellm     # both sides: under 3 minutes
    python -m benchmarks.control_plane                                         # Headgate alone: under a minute

Headgate runs whole, as `headgate serve` starts it (NATS, ledger, admission, scheduler, worker, gateway), on the mock
device, whose steps take a constant time and compute nothing. LiteLLM's proxy stands in front of a fake backend that
sends 64 tokens at once. Both stream 64 tokens to the same client, in turns, on the same two cores, placed in two ways:

- `pinned`: all of the server's processes on core 0; the client, and LiteLLM's backend, on core 1;
- `free`: everything on both cores; LiteLLM with as many workers as there are cores.

Headgate writes once a step and client, so a gateway that falls behind a fast device sends several tokens in one event.
`paced` is the pinned placement with a device slow enough that nearly every token has an event of its own, as LiteLLM's
have; the device then bounds the requests/s (64 at once, 64 steps each), and the ratio to LiteLLM is the least one.

Latency is that of one request at a time. The device's own part is known: a reply of 64 tokens takes 64 steps, its first
token one. The rest is what Headgate adds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks._fake_backend import TOKENS
from benchmarks._load_client import Plan, Reply, Run
from benchmarks._machine import machine
from benchmarks._sides import FakeBackend, Headgate, LiteLLM, pin

RESULTS = Path(__file__).resolve().parent / "results" / "control_plane.json"
LATENCY_GOAL_MS = 5.0
RATIO_GOAL = 5.0
MEMORY_GOAL_MB = 120
PACED_STEP_MS = 5.0
CONCURRENCY = 64
#: Requests of one measurement, by (side, streamed): some seconds each.
REQUESTS = {
    ("headgate", True): 1000,
    ("headgate", False): 1000,
    ("litellm", True): 192,
    ("litellm", False): 512,
    ("backend", True): 2000,
    ("backend", False): 6000,
}
_PROMPT = "This is request number # of many, and none has the same words as another one: say what comes to your mind."
#: The roles that must not import torch, and are held to the goal of memory. nats-server is no process of ours.
_ROLES = ("supervisor", "ledger", "admission", "scheduler", "worker", "gateway")


def plan_for(side: FakeBackend | LiteLLM | Headgate, *, stream: bool, cpus: Iterable[int]) -> Plan:
    """One measurement at full concurrency."""
    body: dict[str, Any] = {"model": side.model, "messages": [{"role": "user", "content": _PROMPT}]}
    body |= {"max_tokens": TOKENS, "stream": stream}
    if side.name == "headgate":
        body["ignore_eos"] = True  # 64 tokens, whatever the mock draws
    ends = '"finish_reason":"length"' if side.name == "headgate" else '"finish_reason"'
    return Plan(
        host="127.0.0.1",
        port=side.port,
        path=side.path,
        key=side.key,
        body=json.dumps(body),
        concurrency=CONCURRENCY,
        requests=REQUESTS[side.name, stream],
        warm_up=CONCURRENCY,
        # Headgate may send several tokens in one event when the client or a core lags: the ledger tells their number.
        min_events=0 if not stream else 2 if side.name == "headgate" else TOKENS + 1,
        must_have=(ends, "[DONE]") if stream else (ends, f'"completion_tokens":{TOKENS}'),
        cpus=tuple(cpus),
    )


def drive(plan: Plan) -> Run:
    """Run the client as a process of its own.

    :raises RuntimeError: a reply was not as it must be.
    """
    command = [sys.executable, "-m", "benchmarks._load_client"]
    done = subprocess.run(
        command,
        input=json.dumps(asdict(plan)).encode(),
        stdout=subprocess.PIPE,
        cwd=Path(__file__).resolve().parent.parent,
        check=True,
    )
    found = json.loads(done.stdout)
    run = Run(found["wall_s"], found["client_cpu_s"], [Reply(**r) for r in found["replies"]], found["failures"])
    if run.failures:
        raise RuntimeError(f"{len(run.failures)} of {plan.requests} replies were wrong, the first: {run.failures[0]}")
    return run


def at(values: list[float], share: float) -> float:
    """The quantile of `values`."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def summary(run: Run) -> dict[str, float]:
    """The figures of one run."""
    first, whole = [r.first_ms for r in run.replies], [r.whole_ms for r in run.replies]
    return {
        "requests_per_s": len(run.replies) / run.wall_s,
        "first_p50_ms": at(first, 0.5),
        "first_p99_ms": at(first, 0.99),
        "whole_p50_ms": at(whole, 0.5),
        "whole_p99_ms": at(whole, 0.99),
        "events_per_reply": mean(r.events for r in run.replies),
        "client_cpu_share": run.client_cpu_s / run.wall_s,
    }


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """Of each figure; and the least and the most of requests/s."""
    rates = [run["requests_per_s"] for run in runs]
    found = {name: median(run[name] for run in runs) for name in runs[0]}
    return found | {"least_requests_per_s": min(rates), "most_requests_per_s": max(rates)}


def measure_latency(stack: Headgate, cpus: tuple[int, ...], requests: int, rounds: int) -> dict[str, Any]:
    """One request at a time; what is left when the device's own time is taken off."""
    found: dict[str, Any] = {"device_step_ms": stack.step_ms, "requests": requests * rounds}
    for stream in (True, False):
        plan = replace(plan_for(stack, stream=stream, cpus=cpus), concurrency=1, requests=requests, warm_up=10)
        replies = [reply for _ in range(rounds) for reply in drive(plan).replies]
        whole = [r.whole_ms - TOKENS * stack.step_ms for r in replies]
        key = "stream" if stream else "whole"
        found[key] = {"added_to_reply_p50_ms": median(whole), "added_to_reply_p99_ms": at(whole, 0.99)}
        if stream:
            first = [r.first_ms - stack.step_ms for r in replies]
            told = [r.overhead_ms for r in replies if r.overhead_ms is not None]
            found[key] |= {
                "added_to_first_p50_ms": median(first),
                "added_to_first_p99_ms": at(first, 0.99),
                "own_header_p50_ms": median(told),
            }
    return found


def memory_mb(pids: dict[str, int]) -> dict[str, float]:
    """Peak resident memory of each process since it started."""
    found = {}
    for name, pid in pids.items():
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM"))
        found[name] = int(peak.split()[1]) / 1024
    return found


def stages(text: str) -> dict[str, dict[str, float]]:
    """Mean and count of each stage of `headgate_overhead_seconds`."""
    sums: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        for part in ("sum", "count"):
            head = f'headgate_overhead_seconds_{part}{{stage="'
            if line.startswith(head):
                stage = line[len(head) :].partition('"')[0]
                sums.setdefault(stage, {})[part] = float(line.rpartition(" ")[2])
    return {
        stage: {"mean_ms": found["sum"] / found["count"] * 1000, "count": found["count"]}
        for stage, found in sums.items()
        if found.get("count")
    }


def measure_rates(sides: list[Any], places: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Every side in turn, streamed and not, `rounds` times; medians over the rounds."""
    found: dict[str, Any] = {}
    for place, (servers, client) in places.items():
        runs: dict[str, list[dict[str, float]]] = {}
        for _ in range(rounds):
            for side in sides:
                # A backend is the client's side of the bench, whoever stands between them.
                pin(side.pids, client if side.name == "backend" else servers)
                for stream in (True, False):
                    run = summary(drive(plan_for(side, stream=stream, cpus=client)))
                    runs.setdefault(f"{side.name} {'stream' if stream else 'whole'}", []).append(run)
                    print(f"  {place:6} {side.name:9}{'stream' if stream else 'whole':7}{run['requests_per_s']:9.1f}/s")
        found[place] = {name: medians(each) for name, each in runs.items()}
    return found


def verdicts(results: dict[str, Any]) -> list[tuple[str, float, float, bool]]:
    """(what, value, goal, met) of each goal that was measured."""
    latency = results["latency"]["stream"]
    added = ("added_to_first_p50_ms", "added_to_reply_p50_ms")
    found = [(what, latency[what], LATENCY_GOAL_MS, latency[what] <= LATENCY_GOAL_MS) for what in added]
    ratios = {place: ratio["stream"] for place, ratio in results["ratio_to_litellm"].items()}
    found += [(f"requests/s to LiteLLM's, {at}", r, RATIO_GOAL, r >= RATIO_GOAL) for at, r in ratios.items()]
    worst = max(mb for name, mb in results["peak_memory_mb"].items() if name.partition(".")[0] in _ROLES)
    found.append(("peak memory of a role, MB", worst, MEMORY_GOAL_MB, worst <= MEMORY_GOAL_MB))
    return found


def report(results: dict[str, Any]) -> str:
    """The tables."""
    lines = [f"one request at a time, device steps of {results['latency']['device_step_ms']:g} ms taken off:"]
    for kind in ("stream", "whole"):
        lines += [f"  {kind:7}{name:26}{value:8.2f}" for name, value in results["latency"][kind].items()]
    lines.append(f"\n{CONCURRENCY} at a time, {TOKENS} tokens a reply:")
    lines.append(
        "  place  side              requests/s (least - most)  first p50/p99 ms     whole p50/p99 ms  events client CPU"
    )
    for place, sides in results["rates"].items():
        for name, r in sides.items():
            spread = f"({r['least_requests_per_s']:.0f} - {r['most_requests_per_s']:.0f})"
            first, whole = (f"{r[f'{x}_p50_ms']:.1f} / {r[f'{x}_p99_ms']:.1f}" for x in ("first", "whole"))
            rate, cpu = f"{r['requests_per_s']:.1f} {spread}", r["client_cpu_share"]
            lines.append(f"  {place:7}{name:18}{rate:27}{first:21}{whole:18}{r['events_per_reply']:8.1f}{cpu:11.0%}")
    lines.append(
        "\nheadgate's own stages, mean ms: "
        + ", ".join(f"{k} {v['mean_ms']:.3f}" for k, v in results["stages"].items())
    )
    lines.append("peak memory, MB: " + ", ".join(f"{k} {v:.0f}" for k, v in results["peak_memory_mb"].items()) + "\n")
    for what, value, goal, met in verdicts(results):
        lines.append(f"{what}: {value:.2f} (goal {goal:g}): {'ok' if met else 'MISSED'}")
    return "\n".join(lines)


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Everything."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("two cores are needed: one for the server, one for the client")
    server, client = (cores[0],), (cores[1],)
    places = {"pinned": (server, client), "free": (tuple(cores), tuple(cores))}
    results: dict[str, Any] = {"machine": machine("headgate", "uvicorn", "nats-py", "msgspec")}
    rates: dict[str, Any] = {}
    with Headgate(scratch / "fast", step_ms=options.step_ms) as stack:
        pin(stack.pids, cores)
        results["latency"] = measure_latency(stack, tuple(cores), options.latency_requests, options.rounds)
        results["stages"] = stages(stack.metrics())
        with ExitStack() as exits:
            sides: list[Any] = [stack]
            if options.litellm is not None:
                backend = exits.enter_context(FakeBackend(scratch))
                single = LiteLLM(scratch, executable=options.litellm, backend=backend)
                results["machine"]["versions"]["litellm"] = single.version()
                sides += [exits.enter_context(single), backend]
            rates |= measure_rates(sides, {"pinned": places["pinned"]}, options.rounds)
        with ExitStack() as exits:
            sides = [stack]
            if options.litellm is not None:
                backend = exits.enter_context(FakeBackend(scratch))
                pin(backend.pids, cores)
                sides.append(
                    exits.enter_context(LiteLLM(scratch, executable=options.litellm, backend=backend, workers=2))
                )
            rates |= measure_rates(sides, {"free": places["free"]}, options.rounds)
        kinds = [REQUESTS["headgate", stream] + CONCURRENCY for stream in (True, False)]
        check_ledger(stack, options.rounds * (2 * sum(kinds) + 2 * (options.latency_requests + 10)))
        results["peak_memory_mb"] = memory_mb(stack.processes())
    with Headgate(scratch / "paced", step_ms=PACED_STEP_MS) as stack:
        rates["paced"] = measure_paced(stack, server, client, options.rounds)
        check_ledger(stack, options.rounds * kinds[0])
    results["rates"] = rates
    results["ratio_to_litellm"] = {
        place: {
            kind: sides[f"headgate {kind}"]["requests_per_s"] / sides[f"litellm {kind}"]["requests_per_s"]
            for kind in ("stream", "whole")
        }
        for place, sides in rates.items()
        if "litellm stream" in sides
    }
    if "litellm stream" in rates["pinned"]:
        paced, other = (rates[p][f"{s} stream"] for p, s in (("paced", "headgate"), ("pinned", "litellm")))
        results["ratio_to_litellm"]["paced"] = {"stream": paced["requests_per_s"] / other["requests_per_s"]}
    return results


def measure_paced(
    stack: Headgate, server: tuple[int, ...], client: tuple[int, ...], rounds: int
) -> dict[str, dict[str, float]]:
    """Streams at full concurrency on a slower device."""
    pin(stack.pids, server)
    runs = [summary(drive(plan_for(stack, stream=True, cpus=client))) for _ in range(rounds)]
    return {"headgate stream": medians(runs)}


def check_ledger(stack: Headgate, sent: int) -> None:
    """Every request that was sent is settled with all of its tokens.

    :raises RuntimeError: one is not.
    """
    requests, tokens = stack.settled(requests=sent)
    if (requests, tokens) != (sent, sent * TOKENS):
        raise RuntimeError(
            f"{sent} requests of {TOKENS} tokens were sent, but {requests} with {tokens} tokens are settled"
        )


def main() -> int:
    """Print the tables and write the results; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--litellm", type=Path, help="bin/litellm, or bin/python, of a venv with litellm[proxy]")
    parser.add_argument("--rounds", type=int, default=2, help="each measurement so many times (default 2)")
    parser.add_argument("--step-ms", type=float, default=2.0, help="of the mock device (default 2)")
    parser.add_argument("--latency-requests", type=int, default=40, help="one at a time, each round (default 40)")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the results go")
    options = parser.parse_args()
    if options.litellm is not None:
        options.litellm = Path(os.path.abspath(options.litellm))
    with tempfile.TemporaryDirectory(prefix="headgate-bench-") as scratch:
        results = measure(options, Path(scratch))
    print(report(results))
    options.json.parent.mkdir(exist_ok=True)
    options.json.write_text(json.dumps(rounded(results), indent=1) + "\n")
    return 0 if all(met for *_, met in verdicts(results)) else 1


def rounded(value: Any) -> Any:
    """Three digits after the point are enough of any figure here."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return round(value, 3) if isinstance(value, float) else value


if __name__ == "__main__":
    raise SystemExit(main())
