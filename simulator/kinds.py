"""The simulation that a policy set asks for: of mixed workers, of disaggregated ones, or with live migration."""

from __future__ import annotations

from typing import Any

from policies.catalog import PolicySet
from simulator.disaggregated import DisaggregatedSimulation
from simulator.migrating import MigratingSimulation
from simulator.pooled import PooledSimulation
from simulator.records import Device, Workload
from simulator.simulation import Simulation

__all__ = ["make_simulation"]


def make_simulation(
    workload: Workload, device: Device, policies: PolicySet, *, workers: int = 1, **options: Any
) -> Simulation:
    """By `policies.roles` and `policies.migration`; `options` are those of `Simulation`.

    With a single worker nothing can move, so migration is none.

    :raises BadFleet: a disaggregated fleet of one worker, or with an admission that knows of no such fleets.
    """
    if policies.roles == "pooled":
        return PooledSimulation(workload, device, policies, workers=workers, **options)
    if policies.roles == "disaggregated":
        return DisaggregatedSimulation(workload, device, policies, workers=workers, **options)
    if policies.migration and workers > 1:
        return MigratingSimulation(workload, device, policies, workers=workers, **options)
    return Simulation(workload, device, policies, workers=workers, **options)
