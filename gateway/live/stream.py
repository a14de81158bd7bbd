"""Frames as server-sent events, to one viewer, until it leaves.

A viewer that reads slowly gets the newest frame when it can take one, with all steps and decisions since its last:
nothing queues up for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AsyncExitStack

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.live.hub import LiveHub, Viewer, unavailable

__all__ = ["LiveStream", "facts"]

#: A reader that takes nothing for so long is gone.
_WRITE_TIMEOUT_S = 60.0
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


async def facts(hub: LiveHub) -> Response:
    """One full frame. :raises ApiError: too many look already, or the gateway is leaving."""
    async with hub.viewer() as viewer:
        body = await viewer.next()
    if body is None:
        raise unavailable("This gateway is shutting down.")
    return Response(body, headers={"cache-control": "no-store"}, media_type="application/json")


class LiveStream(Response):
    """The answer to a viewer. Made by `open`, so that a refusal still has a status of its own."""

    media_type = "text/event-stream"

    def __init__(self, viewer: Viewer, looking: AsyncExitStack) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._viewer = viewer
        self._looking = looking

    @classmethod
    async def open(cls, hub: LiveHub) -> LiveStream:
        """:raises ApiError: too many look already."""
        looking = AsyncExitStack()
        return cls(await looking.enter_async_context(hub.viewer()), looking)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._looking:
            if scope["method"] == "HEAD":
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await send({"type": "http.response.body", "body": b""})
                return
            sending = asyncio.create_task(self._send(send))
            leaving = asyncio.create_task(_left(receive))
            try:
                await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (sending, leaving):
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError, TimeoutError, OSError):
                        await task

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        while (frame := await self._viewer.next()) is not None:
            async with asyncio.timeout(_WRITE_TIMEOUT_S):
                await send(
                    {
                        "type": "http.response.body",
                        "body": b"event: frame\ndata: " + frame + b"\n\n",
                        "more_body": True,
                    }
                )
        await send({"type": "http.response.body", "body": b""})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
