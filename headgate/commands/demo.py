"""`headgate demo`: start everything, flood one tenant, show that the other's contract is kept."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import quantiles

import click

from demo.tasks import Task
from demo.tour import Asked, Report, Tour
from headgate.client import AdminClient
from headgate.errors import HeadgateError
from headgate.output import print_json
from headgate.stack import ENDPOINTS_FILE
from observability.span_store import find_trace
from observability.span_tree import render_tree

__all__ = ["command"]

#: Prints a line.
Say = Callable[[str], None]

_GOLD_TTFT_MS = 1000
_START_S = 180.0  # the first start on a machine compiles the CPU kernels


@click.command("demo")
@click.option("--seconds", default=12.0, show_default=True, help="How long the flood lasts.")
@click.option("--times", default=3.0, show_default=True, help="How many times its capacity the flood sends.")
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--keep", is_flag=True, help="Keep the data directory, for `headgate trace` and `headgate usage`.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the outcome as JSON; what happens meanwhile goes to stderr."
)
def command(seconds: float, times: float, device: str, keep: bool, as_json: bool) -> None:
    """Serve the demo model to two tenants, overload it with one, and report what each was promised and got.

    Exits with 0 only if 99 % of gold's admitted requests kept their contract and every answer was right.

    \b
    Example:
      headgate demo --seconds 20
    """
    say = partial(click.echo, err=as_json)
    data = Path(tempfile.mkdtemp(prefix="headgate-demo-"))
    try:
        with _stack(data, device, say) as endpoints:
            report = asyncio.run(_tour(data, endpoints, seconds, times, say))
    finally:
        if keep:
            say(f"\nkept: {data}")
        else:
            shutil.rmtree(data, ignore_errors=True)
    if as_json:
        print_json(_summary(report))
    sys.exit(0 if _is_good(report) else 1)


@contextmanager
def _stack(data: Path, device: str, say: Say) -> Iterator[dict[str, str]]:
    """A whole stack in processes of its own. Few slots, so that a laptop's load generator can overload it."""
    say("Starting nats-server, ledger, admission, scheduler, worker and gateway …")
    began = time.monotonic()
    command = [sys.executable, "-m", "headgate", "serve", "--data", str(data), "--port", "0", "--admin-port", "0"]
    command += ["--device", device, "--slots", "8", "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        endpoints = data / ENDPOINTS_FILE
        while not endpoints.exists():
            if process.poll() is not None or time.monotonic() - began > _START_S:
                raise HeadgateError(f"the stack did not start; its logs are in {data / 'logs'}")
            time.sleep(0.05)
        say(f"  ready after {time.monotonic() - began:.1f} s")
        yield json.loads(endpoints.read_text())
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


async def _tour(data: Path, endpoints: dict[str, str], seconds: float, times: float, say: Say) -> Report:
    keys = _tenants(data, say)
    tour = Tour(f"{endpoints['api']}/v1", endpoints["model"], keys, say=say)
    try:
        say("\nOne chat each, streamed:")
        await tour.show("gold", Task("add", "37+58=", "95", "37+58"))
        await tour.show("free", Task("count", "count: 5 to 15", "5 6 7 8 9 10 11 12 13 14 15", "5 to 15"))
        say("\nThe flood:")
        report = await tour.run(flood_s=seconds, times_capacity=times)
    finally:
        await tour.close()
    _print(report, say)
    await asyncio.sleep(1.5)  # spans are written in batches
    example = max(report.admitted("gold"), key=lambda asked: asked.ttft_s or 0.0)
    say(f"\nThe trace of gold's slowest request (headgate trace {example.request_id}):")
    say(render_tree(find_trace(data, example.request_id)))
    return report


def _tenants(data: Path, say: Say) -> dict[str, str]:
    say(f"\nTenants: gold (tier priority, first token within {_GOLD_TTFT_MS} ms), free (tier flex, no contract)")
    with AdminClient(data=data) as admin:
        admin.post("/tenants", {"name": "gold", "tier": "priority", "ttft_ms": _GOLD_TTFT_MS})
        admin.post("/tenants", {"name": "free", "tier": "flex"})
        return {name: str(admin.post("/keys", {"tenant": name})["key"]) for name in ("gold", "free")}


def _print(report: Report, say: Say) -> None:
    """Print the outcome."""
    say("\n  tenant  asked  admitted  deferred  refused   TTFT p50/p99 ms   TPOT p50 ms   right")
    for tenant in ("gold", "free"):
        asked, served = report.of(tenant), report.admitted(tenant)
        decisions = Counter(a.decision for a in asked)
        ttft = [1000 * a.ttft_s for a in served if a.ttft_s is not None]
        tpot = [1000 * a.tpot_s for a in served if a.tpot_s is not None]
        right = sum(a.is_right for a in served)
        say(
            f"  {tenant:>6}  {len(asked):>5}  {len(served):>8}  {decisions['deferred']:>8}  {decisions['refused']:>7}"
            f"   {_quantile(ttft, 50):>7.0f} / {_quantile(ttft, 99):<6.0f}  {_quantile(tpot, 50):>11.1f}"
            f"   {right}/{len(served)}"
        )
        for reason, count in report.refusals(tenant).most_common():
            say(f"          refused {count} with {reason}")
    kept, promised = _attained(report.admitted("gold"))
    share = kept / promised if promised else 0.0
    say(f"\n  gold's contract (first token within {_GOLD_TTFT_MS} ms): kept for {kept} of {promised}, {share:.2%}")
    _print_refusal(report, say)
    served = [*report.admitted("gold"), *report.admitted("free")]
    say(f"  right answers under load: {sum(a.is_right for a in served)} of {len(served)}")
    for wrong in [a for a in served if not a.is_right][:3]:
        say(f"    wrong: {wrong.task.prompt!r} was answered {wrong.text!r}, right is {wrong.task.answer!r}")


def _is_good(report: Report) -> bool:
    """99 % of gold's admitted kept their contract, and every answer was right."""
    kept, promised = _attained(report.admitted("gold"))
    is_kept = promised > 0 and kept >= 0.99 * promised
    return is_kept and all(a.is_right for a in [*report.admitted("gold"), *report.admitted("free")])


def _summary(report: Report) -> dict[str, object]:
    """The outcome for programs; times in milliseconds."""
    summary: dict[str, object] = {"good": _is_good(report), "flood_per_s": round(report.flood_per_s, 1)}
    for tenant in ("gold", "free"):
        served = report.admitted(tenant)
        ttft = [1000 * a.ttft_s for a in served if a.ttft_s is not None]
        summary[tenant] = {
            "asked": len(report.of(tenant)),
            "admitted": len(served),
            "deferred": sum(a.decision == "deferred" for a in served),
            "refused": dict(report.refusals(tenant)),
            "right": sum(a.is_right for a in served),
            "ttft_p50_ms": round(_quantile(ttft, 50), 1) if ttft else None,
            "ttft_p99_ms": round(_quantile(ttft, 99), 1) if ttft else None,
        }
    return summary


def _print_refusal(report: Report, say: Say) -> None:
    refused = [a for a in report.of("free") if a.status == 503]
    if refused:
        one = refused[len(refused) // 2]
        say(
            f"  a refusal as free's client saw it: HTTP {one.status}, code {one.reason},"
            f" retry-after-ms {one.retry_after_ms}"
        )
        say(f"    “{one.message}”")


def _attained(served: list[Asked]) -> tuple[int, int]:
    in_time = [a for a in served if a.ttft_s is not None and 1000 * a.ttft_s <= _GOLD_TTFT_MS]
    return len(in_time), len(served)


def _quantile(values: list[float], percent: int) -> float:
    if not values:
        return float("nan")
    return values[0] if len(values) == 1 else quantiles(values, n=100, method="inclusive")[percent - 1]
