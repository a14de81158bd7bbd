"""Whether the simulator tells the truth: the same requests, to a running stack and to a simulation of it.

    python -m benchmarks.simulator_truth [--device mock|cpu] [--model demo|wide] [--seconds S] [--rate R] [--out FILE]

The workload is drawn from a seed: Poisson arrivals, lognormal prompts and outputs that fit the demo model, three
tenants with contracts. It is played over HTTP against `headgate serve`, by `headgate bench`; the simulation then has
the same arrivals, tenants and policies, on the same device model: a published one for the mock, and for the CPU engine
what `headgate profile` says of the worker that has just served. Printed are quantiles of TTFT and TPOT on both sides
and their ratios. Where a live first token is later by the way through HTTP and NATS, that is part of the difference. A
step of the demo model is shorter than that way; `--model wide` is one of the same family with random weights that is
as large as two cores can serve, so that what is compared is the scheduling.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from benchmarks._machine import machine
from policies.catalog import policy_set
from simulator.devices import load_device
from simulator.records import Result, Workload
from simulator.simulation import Simulation
from simulator.workload import load_mix, load_trace

_MOCK = "llama2-70b-h100-tp4"
_DEMO = Path(__file__).resolve().parent.parent / "demo" / "model"
_WIDE = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
_TENANTS = """\
[tenants.gold]
share = 3
tier = "priority"
ttft_ms = {gold_ms}
tpot_ms = {pace_ms}

[tenants.silver]
share = 4
ttft_ms = {silver_ms}
tpot_ms = {slow_ms}

[tenants.free]
share = 3
tier = "flex"
"""


def draw(path: Path, *, rate: float, seconds: float, seed: int) -> None:
    """A trace: arrival, prompt and output lengths."""
    rng, at_s = Random(seed), 0.0
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["arrival_s", "prompt_tokens", "output_tokens"])
        while (at_s := at_s + rng.expovariate(rate)) < seconds:
            prompt = min(1500, max(8, round(rng.lognormvariate(5.8, 0.8))))
            rows.writerow([f"{at_s:.4f}", prompt, min(300, max(4, round(rng.lognormvariate(3.9, 0.7))))])


def widened(folder: Path) -> Path:
    """The demo model's family and tokenizer, with random weights: 33 million parameters."""
    import torch  # here: the mock needs neither
    from transformers import AutoConfig, AutoModelForCausalLM

    wide = folder / "wide"
    shutil.copytree(_DEMO, wide, ignore=shutil.ignore_patterns("*.safetensors"))
    config = AutoConfig.from_pretrained(_DEMO)
    for name, value in _WIDE.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(wide)
    return wide


def play(trace: Path, tenants: Path, folder: Path, options: list[str], profile: Path | None) -> list[dict[str, str]]:
    """Serve, and send the trace. What became of each request, in order of arrival."""
    data, outcomes = folder / "data", folder / "live.csv"
    command = [sys.executable, "-m", "headgate"]
    ports = ["--port", "0", "--admin-port", "0", "--sample-ratio", "0"]
    with (folder / "serve.log").open("wb") as log:
        serve = subprocess.Popen([*command, "serve", "--data", str(data), *ports, *options], stdout=log, stderr=log)
    try:
        until = time.monotonic() + 120
        while not (data / "endpoints.json").exists():
            if serve.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"the stack did not start: {(folder / 'serve.log').read_text()}")
            time.sleep(0.05)
        where = ["--data", str(data)]
        bench = ["bench", "--trace", str(trace), "--tenants", str(tenants), "--csv", str(outcomes), *where]
        # Once to warm up: kernels are compiled, and step times and lengths are learned.
        for _ in range(2):
            subprocess.run([*command, *bench], check=True, stdout=subprocess.DEVNULL)
        if profile is not None:
            subprocess.run(
                [*command, "profile", *where, "--output", str(profile)], check=True, stdout=subprocess.DEVNULL
            )
    finally:
        serve.send_signal(signal.SIGTERM)
        serve.wait(30)
    with outcomes.open(newline="") as file:
        return list(csv.DictReader(file))


def simulate(workload: Workload, device: str) -> Result:
    """The same requests twice, as the live stack had them: what was learned the first time is known the second."""
    return Simulation(workload, load_device(device), policy_set("headgate")).run()


def quantiles(values: list[float]) -> dict[str, float]:
    """In milliseconds."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {f"p{p}": round(1000 * cuts[p - 1], 2) for p in (25, 50, 75, 90, 95)}


def compare(live: list[dict[str, str]], simulated: Result) -> dict[str, object]:
    """Quantiles of both sides over what both admitted, and how often they decided alike."""
    table: dict[str, object] = {}
    mine = {outcome.id: outcome for outcome in simulated.outcomes}
    served = {row["id"] for row in live if row["decision"] == "admitted"}
    table["requests"] = len(live)
    table["admitted"] = {"live": len(served), "simulated": sum(o.decision == "admitted" for o in mine.values())}
    for figure in ("measured_ttft_s", "measured_tpot_s"):
        theirs = [float(row[figure]) for row in live if row["decision"] == "admitted" and row[figure]]
        ours = [getattr(o, figure) for o in mine.values() if o.decision == "admitted" and getattr(o, figure)]
        sides = quantiles(theirs), quantiles(ours)
        table[figure.removesuffix("_s").removeprefix("measured_") + "_ms"] = {
            "live": sides[0],
            "simulated": sides[1],
            "simulated / live": {p: round(sides[1][p] / sides[0][p], 3) for p in sides[0]},
        }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["mock", "cpu"], default="mock")
    parser.add_argument("--model", choices=["demo", "wide"], default="demo", help="of the CPU engine")
    parser.add_argument("--rate", type=float, default=2.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    mock = options.device == "mock"
    promises = (1000, 60, 3000, 100) if mock else (1000, 50, 3000, 100)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trace, tenants, profile = folder / "trace.csv", folder / "tenants.toml", folder / "device.toml"
        draw(trace, rate=options.rate, seconds=options.seconds, seed=options.seed)
        gold, pace, silver, slow = promises
        tenants.write_text(_TENANTS.format(gold_ms=gold, pace_ms=pace, silver_ms=silver, slow_ms=slow))
        device = ["--device", "mock", "--mock-profile", _MOCK] if mock else ["--device", "cpu"]
        if options.model == "wide":
            device += ["--model", str(widened(folder))]
        live = play(trace, tenants, folder, device, None if mock else profile)
        workload = load_trace(trace, tenants=load_mix(str(tenants)), max_tokens_factor=1.0)
        table = compare(live, simulate(workload, _MOCK if mock else str(profile)))
    asked = {"device": options.device, "model": options.model, "rate": options.rate}
    report = {"machine": machine("msgspec", "uvloop"), **asked, **table}
    print(json.dumps(report, indent=2))
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
