"""Usage records on their way into JetStream: written ahead before a request is answered, settled at its end.

A record that cannot be written ahead refuses the request: nothing is served that could not be accounted for. One that
cannot be settled is kept and written again until it is stored; `Nats-Msg-Id` makes the repeat harmless.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from actors.messages import UsageOpened, UsageSettled
from actors.usage import OPENED_SUBJECT, SETTLED_SUBJECT, encode_usage
from gateway.generation import Refused
from observability.traceparent import log_ids
from policies.vocabulary import Finish, Request

__all__ = ["UsageLog"]

#: publish(subject, payload, msg_id): returns when it is stored; raises where it is not.
Publish = Callable[[str, bytes, str], Awaitable[None]]


class UsageLog:
    """`unsettled` counts the records that are not stored yet (the metric `headgate_ledger_unsettled`)."""

    def __init__(self, publish: Publish, *, gateway: str, timeout_s: float = 1.0) -> None:
        self._publish = publish
        self._gateway = gateway
        self._timeout_s = timeout_s
        self._log = structlog.get_logger()
        self.unsettled = 0

    async def opened(self, request: Request, *, key: str) -> None:
        """Raises Refused when it cannot be stored."""
        record = UsageOpened(
            request=request.id,
            tenant=request.tenant,
            key=key,
            model=request.model,
            gateway=self._gateway,
            prompt_tokens=len(request.prompt) // 4,
            max_tokens=request.max_tokens,
            opened_unix_s=time.time(),
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._publish(OPENED_SUBJECT, encode_usage(record), f"{request.id}:opened")
        except Exception as error:
            self._log.error("usage cannot be written", error=str(error))
            why = "usage cannot be recorded now, and nothing is served unrecorded"
            raise Refused.unavailable(why) from error

    async def settled(self, request: Request, *, output_tokens: int, cached_tokens: int, finish: Finish) -> None:
        """Returns when it is stored, however long that takes."""
        record = UsageSettled(
            request=request.id,
            prompt_tokens=len(request.prompt) // 4,
            output_tokens=output_tokens,
            cached_tokens=cached_tokens,
            finish=finish.name,
            attempts=request.attempt,
            settled_unix_s=time.time(),
        )
        payload = encode_usage(record)
        self.unsettled += 1
        delay_s = 0.1
        while True:
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._publish(SETTLED_SUBJECT, payload, f"{request.id}:settled")
                break
            except Exception as error:
                ids = log_ids(request.traceparent)
                self._log.warning("usage is not settled yet", request_id=request.id, error=str(error), **ids)
                await asyncio.sleep(delay_s)
                delay_s = min(2.0, 2 * delay_s)
        self.unsettled -= 1
