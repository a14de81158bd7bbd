"""The deferred requests of admission, and those who wait for their answers."""

from __future__ import annotations

import asyncio

from actors.messages import Decision
from policies import admission as rules
from policies.admission.deferred import Deferred, DeferredQueue
from policies.vocabulary import Request

__all__ = ["Waiting", "WaitingRoom"]


class Waiting:
    """A deferred request, on the worker that would have it first."""

    __slots__ = ("candidate", "request", "worker")

    def __init__(self, request: Request, candidate: rules.Candidate, worker: str) -> None:
        self.request, self.candidate, self.worker = request, candidate, worker

    def reservation(self) -> rules.Reservation:
        """Its claim, as a newcomer's forecast must see it."""
        candidate = self.candidate
        return rules.Reservation(
            id=candidate.id,
            worker=self.worker,
            tier=candidate.tier,
            prompt_tokens=candidate.prompt_tokens,
            max_tokens=candidate.max_tokens,
            deadline_s=None if candidate.ttft_s is None else candidate.arrived_s + candidate.ttft_s,
            tpot_s=candidate.tpot_s,
        )


class WaitingRoom:
    """A `DeferredQueue` whose entries have somebody waiting. Bounded by `size`."""

    def __init__(self, size: int = 512) -> None:
        self._queue: DeferredQueue[Waiting] = DeferredQueue(size=size)
        self._answers: dict[str, asyncio.Future[Decision]] = {}

    def __len__(self) -> int:
        return len(self._queue)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._answers

    def held(self, tenant: str) -> int:
        """Places that a tenant has."""
        return self._queue.held(tenant)

    def put(self, waiting: Waiting, verdict: rules.Defer) -> Deferred[Waiting] | None:
        """Let it in, or change its terms. Returns who has no place for it: answer that one."""
        candidate = waiting.candidate
        if candidate.id not in self._answers:
            self._answers[candidate.id] = asyncio.get_running_loop().create_future()
        return self._queue.add(
            Deferred(
                id=candidate.id,
                tenant=candidate.tenant,
                tier=candidate.tier,
                deadline_s=verdict.deadline_s,
                until_s=verdict.until_s,
                what=waiting,
            )
        )

    async def wait(self, request_id: str) -> Decision:
        """The answer to one that was put in."""
        try:
            return await self._answers[request_id]
        finally:
            del self._answers[request_id]
            self._queue.remove(request_id)

    def answer(self, request_id: str, decision: Decision) -> None:
        """Let it go. Nothing, if it is not here or was answered already."""
        self._queue.remove(request_id)
        answer = self._answers.get(request_id)
        if answer is not None and not answer.done():
            answer.set_result(decision)

    def due(self, now: float) -> tuple[list[Deferred[Waiting]], list[Deferred[Waiting]]]:
        """(those whose time is over: answer them; the others in the order in which to look at them again)."""
        due = self._queue.due(now)
        return due.expired, due.order
