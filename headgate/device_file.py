"""A device model as a file: what `headgate profile` writes, and what simulations and the mock device read.

TOML: the fields of `simulator.records.Device`, and a table `[step_time]` of the coefficients. How well these fit stands
beside them as comments, since a simulation draws its own noise.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from headgate.errors import HeadgateError
from policies.step_time import Ratios
from policies.vocabulary import StepTimeCoefficients, WorkerSpec
from simulator.records import Device

__all__ = ["Measured", "device_of", "to_toml", "write_device_file"]


class Measured(msgspec.Struct, frozen=True):
    """What is known of one worker's device. `spec.step_time` is the fit, not the seed."""

    worker: str
    spec: WorkerSpec
    ratios: tuple[float, float, float]  # p50, p90, p95 of actual over predicted step time
    steps: int  # that were fitted to; 0: the coefficients are those of the self-benchmark at start


def device_of(measured: Measured, *, name: str, source: str) -> Device:
    """The device model. What is not measured (the link between workers) has its default."""
    spec = measured.spec
    return Device(
        name=name,
        blocks=spec.blocks,
        host_blocks=spec.host_blocks,
        block_bytes=spec.block_bytes,
        slots=spec.slots,
        tokens_per_step=spec.tokens_per_step,
        max_context=spec.max_context,
        swap_bytes_per_s=spec.swap_bytes_per_s,
        step_time=spec.step_time,
        source=source,
    )


def to_toml(device: Device, measured: Measured) -> str:
    """The text of the file."""
    fields = msgspec.structs.asdict(device)
    step_time: StepTimeCoefficients = fields.pop("step_time")
    ratios = Ratios(*measured.ratios)
    fit = (
        f"# Fitted to {measured.steps:,} steps. Actual over predicted: "
        f"p50 {ratios.p50:.3f}, p90 {ratios.p90:.3f}, p95 {ratios.p95:.3f}."
        if measured.steps
        else "# From a self-benchmark of a few steps; nothing was fitted to what a scheduler runs."
    )
    lines = [f"{name} = {_value(value)}" for name, value in fields.items()]
    lines[[*fields].index("transfer_bytes_per_s")] += "  # not measured"
    coefficients = [f"{name} = {_value(value)}" for name, value in msgspec.structs.asdict(step_time).items()]
    return "\n".join([*lines, "", fit, "[step_time]", *coefficients, ""])


def write_device_file(path: Path, device: Device, measured: Measured) -> None:
    """Whole or not at all.

    :raises HeadgateError: it cannot be written.
    """
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_text(to_toml(device, measured), encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise HeadgateError(f"the device file {path} cannot be written: {error}") from error


def _value(value: str | int | float) -> str:
    # A JSON string is a TOML basic string, as long as what JSON need not escape is printable.
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
