"""Those who wait for the answer to a request that admission has deferred."""

from __future__ import annotations

import asyncio

from actors.messages import Decision

__all__ = ["WaitingRoom"]


class WaitingRoom:
    """A future for each deferred request; who is deferred, and for how long, is up to `policies.admission`."""

    def __init__(self) -> None:
        self._answers: dict[str, asyncio.Future[Decision]] = {}
        self._gateways: dict[str, str] = {}

    async def wait(self, request_id: str, *, gateway: str) -> Decision:
        """The answer to that request of that gateway."""
        answer: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self._answers[request_id] = answer
        self._gateways[request_id] = gateway
        try:
            return await answer
        finally:
            del self._answers[request_id], self._gateways[request_id]

    def of_gateway(self, gateway: str) -> list[str]:
        """Ids of the requests that wait for that gateway. O(n)."""
        return [request_id for request_id, asking in self._gateways.items() if asking == gateway]

    def answer(self, request_id: str, decision: Decision) -> None:
        """Let it go. Nothing, if it is not here or was answered already."""
        answer = self._answers.get(request_id)
        if answer is not None and not answer.done():
            answer.set_result(decision)
