"""What a gateway asks of admission and of the schedulers, with the patience that a lossy network and restarts
need."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from actors.addresses import scheduler_of
from actors.messages import (
    Accepted,
    Admit,
    Cancel,
    Cancelled,
    Decision,
    Explain,
    Quota,
    QuotaQuery,
    Submit,
    Where,
    Whereabouts,
)
from actors.runtime import ActorError, DeadlineExceeded, Failed, Node
from gateway.generation import GenerationFailed, Refused
from policies.vocabulary import Request

__all__ = ["AskAdmission", "AskScheduler"]

#: So long a new request waits for an admission actor that restarts.
_ADMISSION_AWAY_S = 5.0
#: An ask that is not answered in this time is sent again.
_ASK_AGAIN_S = 1.0
#: So long a scheduler may be away before streams are given up.
_SCHEDULER_AWAY_S = 60.0


class AskAdmission:
    """`clock` gives monotonic seconds."""

    def __init__(self, node: Node, clock: Callable[[], float]) -> None:
        self._node = node
        self._clock = clock

    async def admit(self, request: Request, *, patience_s: float, retries: int) -> Decision:
        """Ask until there is an answer.

        Asked twice, the same request is reserved once. While it is deferred nobody answers for long, so silence is no
        fault within its patience.

        :raises Refused: nobody answers.
        """
        asked = self._clock()
        while True:
            left_s = max(0.0, patience_s - (self._clock() - asked))
            message = Admit(request=request, patience_s=left_s, retries=retries)
            failure: ActorError
            try:
                return await self._node.ask("admission.any", message, want=Decision, timeout_s=_ASK_AGAIN_S)
            except DeadlineExceeded as error:
                is_away, failure = left_s == 0.0, error
            except ActorError as error:
                is_away, failure = self._clock() - asked > min(_ADMISSION_AWAY_S, patience_s), error
                await asyncio.sleep(0.05)
            if is_away:
                why = f"the admission service does not answer ({failure})"
                raise Refused.unavailable(why)

    def withdraw(self, request_id: str) -> None:
        """Its client left while the decision was open."""
        self._node.tell_soon("admission.any", Cancel(request=request_id))

    async def explain(self, request: Request) -> Decision:
        """A dry run. :raises ActorError: no answer."""
        return await self._node.ask("admission.any", Explain(request=request), want=Decision, timeout_s=2.0)

    async def quota(self, tenant: str) -> Quota | None:
        """None if there is no answer."""
        try:
            return await self._node.ask("admission.any", QuotaQuery(tenant=tenant), want=Quota, timeout_s=0.5)
        except ActorError:
            return None


class AskScheduler:
    """Schedulers are addressed by their model."""

    def __init__(self, node: Node, clock: Callable[[], float]) -> None:
        self._node = node
        self._clock = clock

    async def submit(self, request: Request, *, is_wanted: Callable[[], bool]) -> None:
        """Until the scheduler has it, or it is not wanted any more.

        :raises GenerationFailed: the scheduler will not have it, or was away for too long.
        """
        until = self._clock() + _SCHEDULER_AWAY_S
        while is_wanted():
            try:
                await self._node.ask(
                    scheduler_of(request.model), Submit(request=request), want=Accepted, timeout_s=_ASK_AGAIN_S
                )
                return
            except Failed as error:
                raise GenerationFailed(str(error)) from error
            except ActorError as error:
                if self._clock() > until:
                    why = f"no scheduler for model {request.model} for {_SCHEDULER_AWAY_S:.0f} s"
                    raise GenerationFailed(why) from error
            await asyncio.sleep(0.1)

    async def cancel(self, model: str, request_id: str) -> int | None:
        """Returns once no step touches the request: how many outputs were produced. None: no answer, however often
        asked."""
        for timeout_s in (0.5, 1.0, 2.0):
            try:
                ended = await self._node.ask(
                    scheduler_of(model), Cancel(request=request_id), want=Cancelled, timeout_s=timeout_s
                )
                return ended.generated
            except ActorError:
                await asyncio.sleep(0.1)
        return None

    def cancel_soon(self, model: str, request_id: str) -> None:
        """Without an answer."""
        self._node.tell_soon(scheduler_of(model), Cancel(request=request_id))

    async def where(self, model: str, request_ids: list[str]) -> Whereabouts | None:
        """None if there is no answer: ask again later."""
        try:
            return await self._node.ask(
                scheduler_of(model), Where(requests=request_ids), want=Whereabouts, timeout_s=1.0
            )
        except ActorError:
            return None
