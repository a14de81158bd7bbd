"""One run of a grid: its parameters, and how they become a simulation."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import msgspec

from policies.catalog import DEFAULT, PolicySet
from simulator.devices import load_device, scaled_kv
from simulator.door import Door, DoorMaker
from simulator.kinds import make_simulation
from simulator.overrides import changed_policies, label
from simulator.records import Device, Workload
from simulator.simulation import Knowledge, Simulation
from simulator.workload import generate, load_mix, load_synthetic, load_trace, window

__all__ = ["SYNTHETIC", "Cell", "device_of", "policies_of", "simulation_of", "workload_of"]

#: How the name of a made-up workload ends.
SYNTHETIC = ".toml"
# Finite: TOML has inf, and no run of it would end.
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class Cell(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that a run depends on. Paths are absolute, or names of what is shipped."""

    trace: str  # or a made-up workload (.toml)
    tenants: str | None = None  # a mix; None: "default", or what a made-up workload says itself
    device: str
    policy: str = DEFAULT
    changes: dict[str, Any] = {}  # see simulator.overrides
    load: Positive = 1.0
    workers: Annotated[int, msgspec.Meta(ge=1)] = 1
    knowledge: Knowledge = "history"
    step_noise: NotNegative = 0.0
    stragglers: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    length_noise: NotNegative = 0.0
    kv_scale: Positive = 1.0  # of the device's KV blocks
    slo_scale: Positive = 1.0  # of all promised times
    seed: int = 0
    from_s: NotNegative = 0.0  # of the trace, before its load is changed
    until_s: Positive | None = None
    counterfactual: Annotated[int, msgspec.Meta(ge=0)] = 0  # refusals, and as many admissions, that are judged by forks

    @property
    def name(self) -> str:
        """Of its policy, with what was changed."""
        return label(self.policy, self.changes)

    @property
    def told(self) -> Knowledge:
        """What admission knows: a change beats the parameter."""
        told: Knowledge = self.changes.get("knowledge", self.knowledge)
        return told

    def digest(self) -> str:
        """A name for its result: equal parameters and equal input files have equal ones."""
        fields = msgspec.structs.asdict(self)
        fields["changes"] = dict(sorted(self.changes.items()))
        if not self.counterfactual:
            del fields["counterfactual"]  # results from before there were any keep their names
        parts = [msgspec.json.encode(fields)]
        parts += [_content(path) for path in (self.trace, self.tenants, self.device)]
        return hashlib.blake2b(b"\0".join(parts), digest_size=12).hexdigest()


def workload_of(cell: Cell) -> Workload:
    """The trace, with its tenants, in the window of the cell, whose beginning is 0.

    :raises SimulatorError: if it cannot be read, or nothing is in the window.
    """
    whole = _workload(cell.trace, cell.tenants, cell.slo_scale, cell.seed)
    return window(whole, cell.from_s, cell.until_s) if cell.from_s or cell.until_s is not None else whole


def simulation_of(
    cell: Cell, *, workload: Workload | None = None, keep_steps: bool = False, door: DoorMaker = Door
) -> Simulation:
    """The simulation of a cell. `workload`: what `workload_of` gave, where it is at hand.

    :raises SimulatorError: if a name or a file in it is wrong.
    """
    return make_simulation(
        workload or workload_of(cell),
        device_of(cell),
        policies_of(cell),
        workers=cell.workers,
        seed=cell.seed,
        load=cell.load,
        knowledge=cell.told,
        step_noise=cell.step_noise,
        stragglers=cell.stragglers,
        length_noise=cell.length_noise,
        keep_steps=keep_steps,
        door=door,
    )


def policies_of(cell: Cell) -> PolicySet:
    """What decides in a cell."""
    return changed_policies(cell.policy, cell.changes)


def device_of(cell: Cell) -> Device:
    """The device, with its KV pool scaled."""
    device = load_device(cell.device)
    return device if cell.kv_scale == 1 else scaled_kv(device, cell.kv_scale)


@lru_cache(maxsize=2)
def _workload(trace: str, tenants: str | None, slo_scale: float, seed: int) -> Workload:
    """Cached: the policies and loads of a grid run on the same one, after each other."""
    made_up, mix = load_synthetic(trace) if trace.endswith(SYNTHETIC) else (None, load_mix("default"))
    mix = (mix if tenants is None else load_mix(tenants)).scaled(slo_scale)
    return load_trace(trace, tenants=mix, seed=seed) if made_up is None else generate(made_up, tenants=mix, seed=seed)


@lru_cache(maxsize=64)
def _content(path: str | None) -> bytes:
    """What a file says; b"" of what is shipped under a name."""
    if path is None or not (file := Path(path)).is_file():
        return b""
    return hashlib.blake2b(file.read_bytes(), digest_size=16).digest()
