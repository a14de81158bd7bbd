"""The capacity of a device for a workload: the largest load at which a policy still keeps its contracts.

Loads of an experiment are multiples of it, because the arrivals of a trace by themselves say nothing of a device.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from simulator.errors import SimulatorError
from simulator.experiment.cell import Cell, simulation_of, workload_of
from simulator.metrics import measure

__all__ = ["NoCapacity", "capacity", "capacity_of"]

_LEAST, _MOST = 2.0**-10, 2.0**10


class NoCapacity(SimulatorError):
    """At no load that is tried the policy keeps, or at every one it keeps, what is asked."""


def capacity(
    attainment_at: Callable[[float], float | None], *, attainment: float = 0.9, precision: float = 0.02
) -> float:
    """The largest load with at least `attainment`, to `precision` (relative), found by doubling and bisection.

    Assumes that attainment falls with load; where it wavers, one of the loads where it crosses.

    :param attainment_at: attainment of what is offered at a load; None: nothing in contract is offered.
    :raises NoCapacity: if no load between 1/1024 and 1024 is on the border.
    """

    def keeps(load: float) -> bool:
        share = attainment_at(load)
        if share is None:
            raise NoCapacity("no request has a contract, so no load breaks one: give the tenants promises")
        return share >= attainment

    low, high = 1.0, 1.0
    if keeps(1.0):
        while keeps(high := 2 * low):
            low = high
            if low >= _MOST:
                raise NoCapacity(f"{attainment:.0%} are kept even at {low:g} times the load")
    else:
        while not keeps(low := high / 2):
            high = low
            if high <= _LEAST:
                raise NoCapacity(f"{attainment:.0%} are not kept even at {low:g} times the load")
    while high / low > 1 + precision:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return low


def capacity_of(cell: Cell, *, attainment: float = 0.9) -> float:
    """The capacity of a cell's device for its workload under its policy, as a factor on its load.

    :raises SimulatorError: as `capacity`, and if the cell cannot be simulated.
    """
    workload = workload_of(cell)

    def attainment_at(load: float) -> float | None:
        at = msgspec.structs.replace(cell, load=load)
        return measure(simulation_of(at, workload=workload).run()).contract.attainment_offered

    return capacity(attainment_at, attainment=attainment)
