"""The workers of a simulation, and which of them takes a request."""

from __future__ import annotations

from collections.abc import Mapping

from policies.catalog import PolicySet
from policies.vocabulary import Request
from simulator.device import Noise
from simulator.records import Arrival, Device
from simulator.requests import BlockNames
from simulator.worker import SimulatedWorker

__all__ = ["Fleet"]


class Fleet:
    """Workers w0, w1, … of one kind, all for one model. O(workers) a request at most, whatever they have to do."""

    def __init__(
        self,
        size: int,
        device: Device,
        policies: PolicySet,
        *,
        names: BlockNames,
        arrivals: Mapping[str, Arrival],
        noise: Noise,
        seed: int,
        keep: bool,
    ) -> None:
        self.workers = [
            SimulatedWorker(
                f"w{number}",
                device,
                policies.scheduler,
                names=names,
                arrivals=arrivals,
                noise=noise,
                seed=seed,
                keep=keep,
            )
            for number in range(size)
        ]
        self.home: dict[str, int] = {}  # live request → its worker
        self._placement = policies.placement
        self._turn = 0

    def place(self, request: Request, now: float) -> int:
        """The worker for a request that admission has not given to one."""
        workers = self.workers
        if len(workers) == 1:
            return 0
        if self._placement == "round-robin":
            self._turn = (self._turn + 1) % len(workers)
            return self._turn - 1 if self._turn else len(workers) - 1
        return min(range(len(workers)), key=lambda number: workers[number].live)

    def submit(self, request: Request, number: int, now: float) -> None:
        """Give a request to worker `number`.

        :raises Unservable: it could never serve it.
        """
        self.workers[number].submit(request, now)
        self.home[request.id] = number

    def ended(self, request: str) -> int:
        """A request is over; returns the worker that had it."""
        number = self.home.pop(request)
        self.workers[number].live -= 1
        return number
