"""The workers of a simulation, and which of them takes a request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from policies.catalog import PolicySet
from policies.events import Event
from policies.placement import Ask, Placer
from policies.vocabulary import BLOCK_SIZE, Request
from simulator.device import Noise
from simulator.records import PREFIX_TOKENS, Arrival, Device
from simulator.requests import BlockNames
from simulator.worker import SimulatedWorker

__all__ = ["Fleet"]


class Fleet:
    """Workers w0, w1, … of one kind, all for one model. O(log workers) a request, whatever they have to do."""

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
        known: bool = False,
    ) -> None:
        self.now = 0.0  # kept by whoever runs them
        self.roused: set[int] = set()  # workers that are to plan at this instant
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
                known=known,
                number=number,
                roused=self.roused,
            )
            for number in range(size)
        ]
        self.home: dict[str, int] = {}  # live request → its worker
        self._numbers = {worker.name: number for number, worker in enumerate(self.workers)}
        self._names, self._arrivals = names, arrivals
        self.placer: Placer | None = None  # with one worker there is nothing to choose
        if size > 1:
            self.placer = Placer(policies.placement, seed=seed, span=PREFIX_TOKENS, used_blocks=self._used_blocks)
            for worker in self.workers:
                self.placer.join(worker.name, worker.scheduler.spec)

    def _used_blocks(self, worker: str) -> int:
        looked_at = self.workers[self._numbers[worker]]
        looked_at.catch_up(self.now)
        return looked_at.scheduler.census().used_blocks

    def place(self, request: Request) -> int:
        """The number of the worker for a request: the one that admission chose, or that of the placement."""
        if self.placer is None:
            return 0
        return self._numbers[self.placer.place(self.ask(request)) or self.workers[0].name]

    def submit(self, request: Request, number: int, now: float) -> None:
        """Give a request to worker `number`.

        :raises Unservable: it could never serve it.
        """
        worker = self.workers[number]
        worker.submit(request, now)
        self.home[request.id] = number
        if self.placer is not None:
            self.placer.submitted(self.ask(request), worker.name)

    def ask(self, request: Request) -> Ask:
        """What placement is told of a request."""
        tokens = len(request.prompt) // 4
        arrival = self._arrivals[request.id]
        prefix = self._names.leading(arrival)[:: PREFIX_TOKENS // BLOCK_SIZE] if arrival.prefix else ()
        return Ask(
            request.id,
            tokens,
            tokens + request.max_tokens,
            request.max_tokens,
            request.tier,
            request.worker,
            tuple(prefix),
        )

    def heard(self, events: Iterable[Event]) -> None:
        """What the schedulers told."""
        if self.placer is not None:
            self.placer.heard(events)

    def ended(self, request: str) -> int:
        """A request is over; returns the number of the worker that had it."""
        number = self.home.pop(request)
        self.workers[number].live -= 1
        if self.placer is not None:
            self.placer.ended(request)
        return number
