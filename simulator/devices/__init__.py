"""Device models: what a worker can hold, and how long its steps take. Shipped by name, or from a file.

A file is TOML (or the same as JSON): the fields of `simulator.records.Device`, and a table of its step times.

    name = "mine"
    blocks = 4096                  # KV blocks on the device, of policies.vocabulary.BLOCK_SIZE tokens
    host_blocks = 4096             # 0: it cannot swap
    block_bytes = 2097152          # KV bytes of a block, all layers and all GPUs of the worker
    slots = 64
    tokens_per_step = 2048
    max_context = 4096
    swap_bytes_per_s = 20e9        # device to host, each way, all links of the worker together
    transfer_bytes_per_s = 50e9    # to another worker; may be absent
    source = "measured"            # may be absent

    [step_time]                    # see policies.vocabulary.StepTimeCoefficients; seconds
    floor_s = 0.006
    base_s = 0.004
    per_token_s = 2.5e-5
    per_attended_s = 2e-9          # these three may be absent: 0
    per_context_s = 2e-8
    per_row_s = 1e-5

The head of each shipped file says where its figures come from. `simulator.devices.fit` makes step times from
measurements; `headgate profile` writes such a file for a live worker.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from policies.vocabulary import BLOCK_SIZE, StepTimeCoefficients
from simulator.errors import BadDevice
from simulator.records import Device

__all__ = ["DEVICES", "device_from_tables", "device_names", "load_device", "scaled_kv"]

#: The device models that are shipped, loaded by the names of their files.
DEVICES = Path(__file__).parent

_WHOLE = ("blocks", "host_blocks", "block_bytes", "slots", "tokens_per_step", "max_context")
_RATES = ("swap_bytes_per_s", "transfer_bytes_per_s")
_OPTIONAL = ("transfer_bytes_per_s", "source")
_COEFFICIENTS = StepTimeCoefficients.__struct_fields__
_NEEDED_COEFFICIENTS = ("floor_s", "base_s", "per_token_s")


def device_names() -> list[str]:
    """Names of the device models that are shipped."""
    return sorted(path.stem for path in DEVICES.glob("*.toml"))


def load_device(name_or_path: str | Path) -> Device:
    """A shipped device model by its name, or one from a file.

    :raises BadDevice: there is none, a key is missing or unknown, or a value is impossible.
    """
    path = DEVICES / f"{name_or_path}.toml" if str(name_or_path) in device_names() else Path(name_or_path)
    try:
        text = path.read_text(encoding="utf-8")
        tables = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except FileNotFoundError:
        raise BadDevice(
            f"{name_or_path}: no such file, and no device of that name; the devices are {', '.join(device_names())}"
        ) from None
    except (OSError, ValueError) as error:
        raise BadDevice(f"{path}: cannot be read as TOML or JSON: {error}") from error
    return device_from_tables(str(path), tables)


def device_from_tables(where: str, tables: Mapping[str, Any]) -> Device:
    """A device from the keys of its file.

    :param where: named in errors.
    :raises BadDevice: as `load_device`.
    """
    fields = Device.__struct_fields__
    _keys(where, tables, known=fields, needed=[name for name in fields if name not in _OPTIONAL])
    for name in ("name", "source"):
        if name in tables and not isinstance(tables[name], str):
            raise BadDevice(f"{where}: {name} is {tables[name]!r}; a text is needed")
    for name in _WHOLE:
        value, least = tables[name], 0 if name == "host_blocks" else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise BadDevice(f"{where}: {name} is {value!r}; a whole number from {least} is needed")
    for name in _RATES:
        if name in tables and not _number(where, name, tables[name]) > 0:
            raise BadDevice(f"{where}: {name} is {tables[name]!r}; bytes a second, above 0, are needed")
    if tables["max_context"] > tables["blocks"] * BLOCK_SIZE:
        raise BadDevice(
            f"{where}: max_context is {tables['max_context']}; {tables['blocks']} blocks hold at most "
            f"{tables['blocks'] * BLOCK_SIZE} tokens"
        )
    step_time = tables["step_time"]
    if not isinstance(step_time, Mapping):
        raise BadDevice(f"{where}: step_time is {step_time!r}; a table [step_time] is needed")
    _keys(f"{where}: step_time", step_time, known=_COEFFICIENTS, needed=_NEEDED_COEFFICIENTS)
    coefficients = {name: _number(f"{where}: step_time", name, value) for name, value in step_time.items()}
    for name, value in coefficients.items():
        if value < 0:
            raise BadDevice(f"{where}: step_time.{name} is {value}; seconds, 0 or more, are needed")
    taken = StepTimeCoefficients(**coefficients)
    if max(taken.floor_s, taken.base_s + taken.per_token_s) + taken.per_row_s <= 0:
        raise BadDevice(f"{where}: step_time has a step of one token take no time; floor_s or another must be above 0")
    rates = {name: float(tables[name]) for name in _RATES if name in tables}
    return Device(**{**tables, **rates, "step_time": taken})


def scaled_kv(device: Device, share: float) -> Device:
    """The same device with that share of its KV blocks, at least one; no longer context than fits is taken.

    :raises BadDevice: the share is not above 0 and finite.
    """
    if not math.isfinite(share) or share <= 0:
        raise BadDevice(f"{device.name}: KV scaled by {share!r}; a finite factor above 0 is needed")
    blocks = max(1, round(device.blocks * share))
    return msgspec.structs.replace(
        device,
        name=device.name if share == 1 else f"{device.name} kv x{share:g}",
        blocks=blocks,
        max_context=min(device.max_context, blocks * BLOCK_SIZE),
    )


def _keys(where: str, table: Mapping[str, Any], *, known: tuple[str, ...], needed: list[str] | tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            raise BadDevice(f"{where}: unknown key {key}; the keys are {', '.join(known)}")
    for key in needed:
        if key not in table:
            raise BadDevice(f"{where}: {key} is missing")


def _number(where: str, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadDevice(f"{where}: {name} is {value!r}; a finite number is needed")
    return float(value)
