"""`headgate profile`: the device model of a worker, for simulations."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from headgate.client import AdminClient
from headgate.client_options import client_options
from headgate.device_file import Measured, device_of, write_device_file
from headgate.errors import HeadgateError
from headgate.output import print_json, print_record, remark
from headgate.self_profile import Order
from policies.vocabulary import StepTimeCoefficients, WorkerSpec
from simulator.records import Device

__all__ = ["command"]

#: Fewer steps than this leave the fit near its seed in what they did not show.
_FEW_STEPS = 200
_LOAD_S = 600.0


@click.command(
    name="profile",
    epilog="Example: headgate profile -o mine.toml, or without a stack: headgate profile --model ./model --device cpu",
)
@click.option("--worker", default="", help="Which worker of the stack. [default: the one with the most steps timed]")
@click.option("--model", default="", help="Model directory: load an engine here instead of asking a stack.")
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda", "mock"]))
@click.option(
    "--dtype", default="auto", show_default=True, type=click.Choice(["auto", "float32", "bfloat16", "float16"])
)
@click.option("--slots", default=64, show_default=True, help="Requests that run at once.")
@click.option("--tokens-per-step", default=0, help="Tokens of one forward pass at most. [default: by device]")
@click.option("--kv-mib", default=0, help="KV cache, MiB. [default: by what is free]")
@click.option("--threads", default=0, help="Threads of a CPU engine. [default: all]")
@click.option("--seconds", default=20.0, show_default=True, help="How long the engine is driven.")
@click.option("--name", default="", help="Name of the device model. [default: of the model and the device]")
@click.option("-o", "--output", default="", help="File to write. [default: <name>.toml]")
@client_options
def command(
    worker: str, model: str, name: str, output: str, data: str, admin_url: str | None, as_json: bool, **engine: Any
) -> None:
    """Write the device model of a worker: its sizes, and its step times as fitted to what was measured.

    Of a running stack it is asked for, and changes nothing. With --model (or --device mock) an engine is loaded in a
    process of its own and driven for --seconds.
    """
    local = bool(model) or engine["device"] == "mock"
    measured = _load_and_drive(model, engine) if local else _ask(Path(data), admin_url, worker)
    spec = measured.spec
    name = name or f"{spec.model}-{spec.device}"
    where = "an engine of its own" if local else f"worker {measured.worker} of a running stack"
    device = device_of(measured, name=name, source=f"headgate profile: {where}, {measured.steps} steps timed")
    path = Path(output or f"{name.replace('/', '-')}.toml")
    write_device_file(path, device, measured)
    if as_json:
        print_json(_view(device, measured, path))
    else:
        print_record(_table(device, measured))
        remark(f"Written to {path}.")
    if measured.steps < _FEW_STEPS:
        remark(
            f"Only {measured.steps} steps were timed: step times are mostly those of the self-benchmark. "
            + ("Give it more --seconds." if local else "Ask again when the stack has served more.")
        )


def _load_and_drive(model: str, engine: dict[str, Any]) -> Measured:
    order = Order(
        model=model or None,
        device=engine["device"],
        dtype=engine["dtype"],
        slots=engine["slots"],
        tokens_per_step=engine["tokens_per_step"] or None,
        kv_bytes=engine["kv_mib"] * 2**20 or None,
        threads=engine["threads"] or None,
        seconds=engine["seconds"],
    )
    arguments = [sys.executable, "-m", "headgate.self_profile", msgspec.json.encode(order).decode()]
    try:
        ended = subprocess.run(arguments, capture_output=True, timeout=_LOAD_S + order.seconds, check=False)
    except subprocess.TimeoutExpired:
        raise HeadgateError(f"the engine was not ready within {_LOAD_S:.0f} s: try a smaller model") from None
    if ended.returncode:
        lines = ended.stderr.decode(errors="replace").strip().splitlines()
        raise HeadgateError(f"the engine could not be profiled: {lines[-1] if lines else 'its process was killed'}")
    return msgspec.json.decode(ended.stdout, type=Measured)


def _ask(data: Path, admin_url: str | None, worker: str) -> Measured:
    with AdminClient(data=data, admin_url=admin_url) as admin:
        rows: list[dict[str, Any]] = admin.get("workers")["workers"]
    known = ", ".join(str(row["worker"]) for row in rows)
    if worker:
        rows = [row for row in rows if row["worker"] == worker]
    if not rows:
        raise HeadgateError(
            f"the stack has no worker {worker!r}: it has {known or 'none'}" if worker else "the stack has no worker yet"
        )
    row = max(rows, key=lambda row: int(row["steps_timed"]))
    fields = {field: row[field] for field in WorkerSpec.__struct_fields__ if field != "step_time"}
    spec = WorkerSpec(**fields, step_time=StepTimeCoefficients(**row["step_time"]))
    return Measured(row["worker"], spec, (row["ratio_p50"], row["ratio_p90"], row["ratio_p95"]), row["steps_timed"])


def _view(device: Device, measured: Measured, path: Path) -> dict[str, object]:
    p50, p90, p95 = measured.ratios
    step_time = msgspec.structs.asdict(device.step_time)
    return {
        "device": msgspec.structs.asdict(device) | {"step_time": step_time},
        "steps_timed": measured.steps,
        "ratios": {"p50": p50, "p90": p90, "p95": p95},
        "file": str(path),
    }


def _table(device: Device, measured: Measured) -> dict[str, object]:
    """For a person: coefficients in units that one can compare."""
    c = device.step_time
    p50, p90, p95 = measured.ratios
    return {
        "device model": device.name,
        "KV blocks": f"{device.blocks:,} of {device.block_bytes / 1024:,.0f} KiB; on the host {device.host_blocks:,}",
        "slots": device.slots,
        "tokens a step": device.tokens_per_step,
        "context": device.max_context,
        "swap": f"{device.swap_bytes_per_s / 1e9:.3g} GB/s",
        "floor": f"{1e3 * c.floor_s:.4g} ms a step at least",
        "base": f"{1e3 * c.base_s:.4g} ms",
        "per token": f"{1e6 * c.per_token_s:.4g} µs",
        "per attended": f"{1e9 * c.per_attended_s:.4g} ns a prompt token and token before it",
        "per context": f"{1e9 * c.per_context_s:.4g} ns a decoding row and token before it",
        "per row": f"{1e6 * c.per_row_s:.4g} µs",
        "actual / predicted": f"p50 {p50:.3f}, p90 {p90:.3f}, p95 {p95:.3f}",
        "steps timed": measured.steps,
    }
