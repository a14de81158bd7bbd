"""The engine on a CPU beside `transformers`, on the same weights, requests, dtype and threads.

    python benchmarks/engine_cpu.py                      # everything: about 12 minutes on two cores
    python benchmarks/engine_cpu.py --models tiny --peers headgate,static --repeat 1

Workload: 32 requests at once, prompts of 32 to 512 tokens, outputs of 16 to 128, greedy, EOS ignored, ids seeded. Also
one request alone (batch-1 decode) and a prefill of 1,024 tokens, beside the memory bandwidth and the matrix-multiply
rate of the machine measured in the same run. Each side runs in a process of its own, in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Request = tuple[list[int], int]  # (prompt ids, outputs)

RESULTS = Path(__file__).parent / "results" / "engine_cpu.json"
MODELS = ("tiny", "small")
PEERS = ("headgate", "static", "continuous")


def workloads() -> dict[str, list[Request]]:
    """Requests by name; the same at every call."""
    r = random.Random(20261121)

    def ids(n: int) -> list[int]:
        return [r.randint(300, 9999) for _ in range(n)]

    mixed = [(ids(r.randint(32, 512)), r.randint(16, 128)) for _ in range(32)]
    return {"mixed": mixed, "alone": [(ids(32), 128)], "prefill": [(ids(1024), 1)]}


def make_model(name: str, directory: Path) -> None:
    """Write a random-weight checkpoint: `tiny` (Llama, fp32) or `small` (the shape of Qwen3-0.6B, bf16)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    model: Any
    if name == "tiny":
        model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=256,
                num_hidden_layers=4,
                num_attention_heads=8,
                num_key_value_heads=4,
                intermediate_size=1024,
                vocab_size=32000,
                max_position_embeddings=4096,
                tie_word_embeddings=False,
            )
        )
    else:
        config = Qwen3Config(
            hidden_size=1024,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            intermediate_size=3072,
            vocab_size=151936,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        )
        model = Qwen3ForCausalLM(config)
        model = model.to(torch.bfloat16)
    model.save_pretrained(directory)


# --- our side ---------------------------------------------------------------------------------------------------------


@dataclass
class Served:
    """A request and what became of it."""

    prompt: list[int]
    outputs: int
    began: float
    tokens: list[int] = field(default_factory=list)
    first: float = 0.0
    last: float = 0.0


def drive(engine: Any, requests: list[Request]) -> list[Served]:
    """Serve requests that come at once with Headgate's scheduler, two steps in flight, its prefix cache cold."""
    from policies.config import SchedulerConfig
    from policies.scheduler import Scheduler
    from policies.step_time import StepTimeModel
    from policies.vocabulary import Request as Submitted
    from policies.vocabulary import Sampling, pack_tokens

    engine.reset()
    scheduler = Scheduler(engine.spec, config=SchedulerConfig(), step_time=StepTimeModel(engine.spec.step_time))
    began = time.perf_counter()
    everyone = {str(i): Served(prompt, outputs, began) for i, (prompt, outputs) in enumerate(requests)}
    sampling = Sampling(temperature=0.0, ignore_eos=True)
    for name, served in everyone.items():
        prompt = pack_tokens(served.prompt)
        scheduler.submit(Submitted(name, 1, "t", "m", "g", prompt, served.outputs, sampling), time.perf_counter())
    launched: deque[Any] = deque()
    while any(len(served.tokens) < served.outputs for served in everyone.values()):
        step = scheduler.plan(time.perf_counter())
        if step is not None:
            launched.append(engine.launch(step))
            if len(launched) < 2:
                continue
        result = engine.collect(launched.popleft())
        if result.done.error:
            raise SystemExit(result.done.error)
        now = time.perf_counter()
        scheduler.complete(result.done, now)
        for name, token in zip(result.rows.requests, result.rows.tokens, strict=True):
            served = everyone[name]
            served.first = served.first or now
            served.last = now
            served.tokens.append(token)
    for handle in launched:
        engine.collect(handle)
    return list(everyone.values())


def side_headgate(directory: Path, threads: int, repeat: int) -> dict[str, Any]:
    """Our engine."""
    from gpu_worker.engine import load_engine

    began = time.perf_counter()
    engine: Any = load_engine(directory, device="cpu", threads=threads, slots=32, kv_bytes=4 << 30, host_blocks=0)
    found: dict[str, Any] = {"load_s": time.perf_counter() - began, "load_parts_s": engine.load_times_s}
    found["spec"] = repr(engine.spec)
    drive(engine, [([5] * 40, 4)])
    for name, requests in workloads().items():
        runs = []
        for _ in range(repeat):
            done = drive(engine, requests)
            runs.append(measure(done, [r.tokens for r in done]))
        found[name] = best(runs)
    return found


# --- transformers -----------------------------------------------------------------------------------------------------


def hf_model(directory: Path, threads: int) -> Any:
    """The checkpoint as transformers loads it, in the dtype it is stored in."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", attn_implementation="sdpa")
    model.eval()
    model.generation_config.eos_token_id = None
    return model


def side_static(directory: Path, threads: int, repeat: int) -> dict[str, Any]:
    """`generate` on left-padded static batches: all 32 at once, or 4 of 8 sorted by length; the better is reported."""
    import torch
    from transformers import StoppingCriteria

    model = hf_model(directory, threads)

    class Stamp(StoppingCriteria):
        def __init__(self) -> None:
            self.times: list[float] = []

        def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            self.times.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool)

    def generate(batch: list[Served]) -> None:
        width, outputs = max(len(r.prompt) for r in batch), max(r.outputs for r in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, r in enumerate(batch):
            ids[row, width - len(r.prompt) :] = torch.tensor(r.prompt)
            mask[row, width - len(r.prompt) :] = 1
        stamp = Stamp()
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=outputs,
                min_new_tokens=outputs,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                stopping_criteria=[stamp],
            )
        for row, r in enumerate(batch):
            r.tokens = out[row, width : width + r.outputs].tolist()
            r.first, r.last = stamp.times[0], stamp.times[r.outputs - 1]

    def run(requests: list[Request], size: int) -> list[Served]:
        began = time.perf_counter()
        done = [Served(prompt, outputs, began) for prompt, outputs in requests]
        ordered = done if size >= len(done) else sorted(done, key=lambda r: r.outputs)
        for at in range(0, len(ordered), size):
            generate(ordered[at : at + size])
        return done

    run([([5] * 16, 4)], 1)
    found: dict[str, Any] = {}
    for name, requests in workloads().items():
        runs = []
        for size in (32, 8) if len(requests) > 1 else (1,):
            for _ in range(repeat):
                done = run(requests, size)
                runs.append({**measure(done, [r.tokens for r in done]), "batch": size})
        found[name] = best(runs)
    return found


def side_continuous(directory: Path, threads: int, repeat: int) -> dict[str, Any]:
    """transformers' continuous batching, with enough KV for all, no sharing between runs; the better token budget."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model = hf_model(directory, threads)
    make: Any = GenerationConfig
    generation = make(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=128)
    found: dict[str, Any] = {}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in workloads()}
    for budget in (512, 2048):
        config = ContinuousBatchingConfig(
            page_size=32,
            num_blocks=1024,
            max_batch_tokens=budget,
            allow_block_sharing=False,
            auto_switch_to_flash=False,
        )
        manager = model.init_continuous_batching(generation_config=generation, continuous_batching_config=config)
        manager.start()

        def run(requests: list[Request], manager: Any = manager) -> list[Served]:
            began = time.perf_counter()
            done = [Served(prompt, outputs, began) for prompt, outputs in requests]
            by_id = {
                manager.add_request(r.prompt, max_new_tokens=r.outputs, record_timestamps=True, eos_token_id=-1): r
                for r in done
            }
            left = len(done)
            while left:
                result = manager.get_result(timeout=1)
                if result is None:
                    if not manager.is_running():
                        raise SystemExit("continuous batching stopped")
                elif result.is_finished():
                    if result.error:
                        raise SystemExit(result.error)
                    r = by_id[result.request_id]
                    r.tokens = result.generated_tokens
                    r.first, r.last = result.timestamps[0], result.timestamps[-1]
                    left -= 1
            return done

        run([([5] * 16, 4)])
        for name, requests in workloads().items():
            for _ in range(repeat):
                done = run(requests)
                runs[name].append({**measure(done, [r.tokens for r in done]), "max_batch_tokens": budget})
        manager.stop(block=True)
    for name, results in runs.items():
        found[name] = best(results)
    return found


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(done: list[Served], tokens: list[list[int]]) -> dict[str, Any]:
    """Rates of one run; `tokens` are kept to compare the sides."""
    wall = max(r.last for r in done) - done[0].began
    outputs = sum(r.outputs for r in done)
    if any(len(t) != r.outputs for t, r in zip(tokens, done, strict=True)):
        raise SystemExit("a request got the wrong number of tokens")
    ttft = sorted(r.first - r.began for r in done)
    tpot = sorted((r.last - r.first) / (r.outputs - 1) for r in done if r.outputs > 1) or [0.0]
    return {
        "wall_s": wall,
        "output_tokens_per_s": outputs / wall,
        "prompt_tokens_per_s": sum(len(r.prompt) for r in done) / wall,
        "ttft_p50_s": ttft[len(ttft) // 2],
        "ttft_max_s": ttft[-1],
        "tpot_p50_s": tpot[len(tpot) // 2],
        "tpot_max_s": tpot[-1],
        "tokens": tokens,
    }


def best(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The fastest run, with all walls beside it."""
    return {**min(runs, key=lambda run: run["wall_s"]), "walls_s": [round(run["wall_s"], 4) for run in runs]}


def side_limits(_: Path, threads: int, repeat: int) -> dict[str, Any]:
    """What the machine can do: bytes read a second, and multiply-adds of a large matrix product."""
    import torch

    torch.set_num_threads(threads)

    def rate(work: Any, amount: float) -> float:
        times = []
        for _ in range(3 + 2 * repeat):
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
        return amount / min(times)

    big = torch.ones(1 << 27)
    found: dict[str, Any] = {"read_bytes_per_s": rate(big.sum, big.numel() * 4)}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
        found[f"{str(dtype).removeprefix('torch.')}_flop_per_s"] = rate(lambda a=a, b=b: a @ b, 2 * 2048**3)
    return found


SIDES = {"headgate": side_headgate, "static": side_static, "continuous": side_continuous, "limits": side_limits}


def run_side(side: str, directory: Path, threads: int, repeat: int) -> dict[str, Any]:
    """One side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--directory", str(directory)]
    command += ["--threads", str(threads), "--repeat", str(repeat)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def machine(threads: int) -> dict[str, Any]:
    """Where and with what this was measured."""
    from importlib.metadata import version

    cpu = platform.processor()
    if Path("/proc/cpuinfo").is_file():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "cpu": cpu,
        "threads": threads,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numba", "transformers")},
        "commit": commit,
        "load_average_before": os.getloadavg()[0],
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def table(results: dict[str, Any]) -> str:
    """What was measured, to read."""
    lines = [
        "| model | peer | mixed, tokens/s | ratio | TTFT p50 | TPOT p50 | alone, tokens/s | prefill, tokens/s | MB |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for name, sides in results["models"].items():
        ours = sides.get("headgate")
        for peer, side in sides.items():
            m, alone, prefill = side["mixed"], side["alone"], side["prefill"]
            ratio = f"{ours['mixed']['output_tokens_per_s'] / m['output_tokens_per_s']:.2f}" if ours else "-"
            lines.append(
                f"| {name} | {peer} | {m['output_tokens_per_s']:.1f} | {ratio} | {m['ttft_p50_s']:.2f} s "
                f"| {m['tpot_p50_s'] * 1e3:.1f} ms | {1 / alone['tpot_p50_s']:.1f} "
                f"| {1024 / prefill['ttft_p50_s']:.0f} | {side['peak_rss_mb']:.0f} |"
            )
    limits = results["limits"]
    flops = [limits[f"{kind}_flop_per_s"] / 1e9 for kind in ("float32", "bfloat16")]
    lines += ["", f"Limits: {limits['read_bytes_per_s'] / 1e9:.1f} GB/s read."]
    lines += [f"Matrix multiply: {flops[0]:.0f} (fp32) and {flops[1]:.0f} (bf16) GFLOP/s."]
    for name, sides in results["models"].items():
        lines += shares(name, sides, limits)
    return "\n".join(lines)


def shares(name: str, sides: dict[str, Any], limits: dict[str, Any]) -> list[str]:
    """Our single-request figures as shares of what memory and multipliers allow."""
    if "headgate" not in sides:
        return []
    layer, head, element, kind = {
        "tiny": (4 * (256 * 512 + 256 * 256 + 3 * 256 * 1024), 256 * 32000, 4, "float32"),
        "small": (28 * (1024 * 4096 + 2048 * 1024 + 3 * 1024 * 3072), 1024 * 151936, 2, "bfloat16"),
    }[name]
    ours = sides["headgate"]
    decode = (layer + head) * element / limits["read_bytes_per_s"] / ours["alone"]["tpot_p50_s"]
    prefill = 1024 * 2 * layer / limits[f"{kind}_flop_per_s"] / ours["prefill"]["ttft_p50_s"]
    return [f"{name}: batch-1 decode at {decode:.0%} of memory bandwidth, prefill at {prefill:.0%} of matrix multiply."]


def agreement(sides: dict[str, Any]) -> dict[str, float]:
    """Share of requests of the mixed workload whose tokens are ours, by peer. (In bf16, ties part the sides.)"""
    if "headgate" not in sides:
        return {}
    ours = sides["headgate"]["mixed"]["tokens"]
    return {
        peer: sum(a == b for a, b in zip(ours, side["mixed"]["tokens"], strict=True)) / len(ours)
        for peer, side in sides.items()
        if peer != "headgate"
    }


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--keep", type=Path, help="where to keep the models; a temporary folder by default")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--side", choices=sorted(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.side:
        found = SIDES[a.side](a.directory, a.threads, a.repeat)
        found["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(found))
        return
    results: dict[str, Any] = {"machine": machine(a.threads), "models": {}}
    with tempfile.TemporaryDirectory() as temporary:
        root = a.keep or Path(temporary)
        results["limits"] = run_side("limits", root, a.threads, a.repeat)
        for name in a.models.split(","):
            if not (root / name / "config.json").is_file():
                make_model(name, root / name)
            sides = {peer: run_side(peer, root / name, a.threads, a.repeat) for peer in a.peers.split(",")}
            results.setdefault("same_tokens", {})[name] = agreement(sides)
            for side in sides.values():
                for workload in workloads():
                    side[workload].pop("tokens")
            results["models"][name] = sides
    print(table(results))
    print("Requests with our tokens:", json.dumps(results["same_tokens"]))
    a.out.parent.mkdir(parents=True, exist_ok=True)
    a.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main()
