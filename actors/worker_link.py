"""One attached worker as the scheduler actor holds it: the pure core, and the repair of what core NATS loses.

Steps are sent again until their results come: a worker runs each once, and answers one that it has run with the same
result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

import structlog

from actors.messages import RunStep, Stepped
from actors.step_notes import StepNote, StepObserver
from policies.config import SchedulerConfig
from policies.events import Event
from policies.rows import Flight
from policies.scheduler import Scheduler
from policies.step_time import StepTimeModel
from policies.vocabulary import StepDone, WorkerSpec

__all__ = ["WorkerLink"]


class WorkerLink:
    """`send(message)` tells the worker. Methods take `now` in seconds of the caller's monotonic clock, and none
    waits."""

    #: Steps in flight are sent again when nothing was heard for so long. It costs a message, so it need not be exact.
    RESEND_S = 0.5
    #: No result for so long means a stalled device: the worker is given up.
    STALL_S = 60.0

    def __init__(
        self,
        worker: str,
        spec: WorkerSpec,
        *,
        session: int,
        epoch: int,
        config: SchedulerConfig,
        send: Callable[[RunStep], None],
        observers: Sequence[StepObserver] = (),
    ) -> None:
        self.worker = worker
        self.spec = spec
        self.session = session
        self.epoch = epoch
        self.core = Scheduler(spec, config=config, step_time=StepTimeModel(spec.step_time))
        self.core.on_step = self._note
        self._send = send
        self._observers = tuple(observers)
        self._heard_at = 0.0  # a result, or the first step of an idle pipeline
        self._sent_at = 0.0
        self._wake_at = inf
        self._log = structlog.get_logger().bind(worker=worker)

    def pump(self, now: float) -> None:
        """Plan and send until the pipeline is full or nothing is left to do."""
        while True:
            idle = not self.core.in_flight
            step = self.core.plan(now)
            if step is None:
                return
            if idle:
                self._heard_at = now
            self._sent_at = now
            self._send(RunStep(session=self.session, step=step))

    def due_in_s(self, now: float) -> float | None:
        """How long from now to pump again although nothing is heard, if a timer is to be set for it: then call `woken`
        and `pump`. None if none is needed, or one that is as early is under way."""
        if self.core.in_flight:
            return None  # its result drives the next
        due = self.core.wake_at(now)
        if due >= self._wake_at:
            return None
        self._wake_at = due
        return max(0.0, due - now)

    def woken(self) -> None:
        """A timer fired."""
        self._wake_at = inf

    def stepped(self, message: Stepped, now: float) -> list[Event]:
        """Take a result of the present attach. Returns what came of it.

        :raises PolicyError: the worker refused the step, or its result does not fit: it must be attached anew.
        """
        self._heard_at = now
        return self.core.complete(message.done, now)

    def _note(self, flight: Flight, done: StepDone, predicted_s: float) -> None:
        if self._observers:
            note = StepNote(self.worker, flight, done, predicted_s=predicted_s, at=self._heard_at, epoch=self.epoch)
            for observer in self._observers:
                observer.stepped(note)

    def watch(self, now: float) -> bool:
        """Send again what is late. False: the worker is stalled and must be given up."""
        if not self.core.in_flight:
            return True
        if now - self._heard_at > self.STALL_S:
            return False
        if now - max(self._sent_at, self._heard_at) > self.RESEND_S:
            self.resend(now)
        return True

    def resend(self, now: float) -> None:
        """Send all steps in flight again."""
        steps = self.core.unacknowledged()
        self._log.info("steps sent again", steps=[step.number for step in steps])
        self._sent_at = now
        for step in steps:
            self._send(RunStep(session=self.session, step=step))
