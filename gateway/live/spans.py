"""The spans of a request, for its waterfall: from a Jaeger where there is one, else from the data directory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from gateway.errors import ApiError
from observability.errors import ObservabilityError
from observability.jaeger import find_in_jaeger
from observability.span_store import Span, find_trace

__all__ = ["span_source"]


def span_source(data: Path, *, jaeger_url: str = "") -> Callable[[str], Awaitable[Sequence[Span]]]:
    """Reads in a thread: SQLite may wait for a writer, and a Jaeger is another machine. What is asked raises an
    ApiError (503) if it cannot be read."""

    def read(request_id: str) -> Sequence[Span]:
        return find_in_jaeger(jaeger_url, request_id) if jaeger_url else find_trace(data, request_id)

    async def spans(request_id: str) -> Sequence[Span]:
        try:
            return await asyncio.to_thread(read, request_id)
        except ObservabilityError as error:
            raise ApiError(
                f"The spans cannot be read: {error}.",
                status=503,
                type="service_unavailable_error",
                code="unavailable",
                retry_after_s=1.0,
            ) from error

    return spans
