from __future__ import annotations

from typing import Any

import openai
import pytest
import structlog
from edge_support import FakeFrontend, FakeGeneration, edge
from structlog.contextvars import get_contextvars, merge_contextvars
from structlog.testing import LogCapture

from gateway.observing import EdgeHooks
from observability.metrics import EdgeMetrics, Metrics
from observability.tracing import setup_tracing

ASK: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "hello"}]}


async def test_lines_about_a_request_carry_its_id_and_those_of_its_trace() -> None:
    """What anything logs while it serves a request leads to its trace, sampled or not; a request's ids are its own."""

    def script(generation: FakeGeneration) -> None:
        structlog.get_logger("anything").info("working")
        raise ZeroDivisionError

    captured = LogCapture()
    structlog.configure(processors=[merge_contextvars, captured])
    tracing = setup_tracing("gateway", "g0", data_dir=None, sample_ratio=0.0)
    try:
        async with (
            edge(FakeFrontend(script), hooks=EdgeHooks(EdgeMetrics(Metrics("gateway", "g0")), tracing)) as served,
            served.client() as client,
        ):
            for _ in range(2):
                with pytest.raises(openai.InternalServerError) as raised:
                    await client.chat.completions.create(**ASK)
                headers = raised.value.response.headers
                _, trace_id, span_id, flags = headers["traceparent"].split("-")
                assert flags == "00"
                ids = {"request_id": headers["x-request-id"], "trace_id": trace_id, "span_id": span_id}
                lines = captured.entries[-2:]
                assert [line["event"] for line in lines] == ["working", "request failed"]
                assert all(ids.items() <= line.items() for line in lines)
        assert not get_contextvars()
    finally:
        structlog.reset_defaults()
        tracing.shutdown()
