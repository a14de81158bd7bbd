"""What the trace of one request shows, and of which requests there is one: the real actors, in virtual time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from traced_stack import TracedStack, traced
from virtual_stack import request

from observability.span_store import Span
from policies.config import SchedulerConfig
from policies.vocabulary import Limits, Tenant

SERVER = "POST /v1/chat/completions"
CHAT = "chat org/m-0.6B"


def by_name(spans: list[Span]) -> dict[str, Span]:
    """One of each name: the last."""
    return {span.name: span for span in spans}


def events(span: Span) -> list[str]:
    return [event.name for event in span.events]


def check_connected(spans: list[Span]) -> None:
    """One root, and everything under it, in one trace."""
    (root,) = [span for span in spans if not span.parent_id]
    assert root.name == SERVER
    assert {span.parent_id for span in spans if span is not root} == {root.span_id}
    assert {span.trace_id for span in spans} == {root.trace_id}


def test_a_sampled_request_shows_its_time_in_every_actor(tmp_path: Path) -> None:
    """Gateway, admission, queue, prefill with each chunk, decode, worker: one tree, whose phases follow on each
    other."""

    async def scenario(traces: TracedStack) -> None:
        assert await traces.serve(request(1, prompt=150, outputs=10)) == "ok"

    spans = traced(tmp_path, scenario, ratio=1.0).spans("r1")
    check_connected(spans)
    found = by_name(spans)
    assert {name: span.role for name, span in found.items()} == {
        SERVER: "gateway",
        "admission": "admission",
        "queue": "scheduler",
        "prefill": "scheduler",
        "decode": "scheduler",
        CHAT: "worker",
    }
    assert len(spans) == 6
    queue, prefill, decode = found["queue"], found["prefill"], found["decode"]
    assert (queue.end_unix_ns, prefill.end_unix_ns) == (prefill.start_unix_ns, decode.start_unix_ns)
    server = found[SERVER]
    assert all(server.start_unix_ns <= span.start_unix_ns <= span.end_unix_ns for span in spans)
    chunks = [event.attributes for event in prefill.events if event.name == "chunk"]
    assert [chunk["headgate.tokens"] for chunk in chunks] == [64, 64, 22]
    assert [chunk["headgate.step"] for chunk in chunks] == [1, 2, 3]
    assert prefill.attributes["headgate.chunks"] == 3
    assert prefill.attributes["headgate.worker"] == "w0"
    assert decode.attributes["headgate.output_tokens"] == 10
    assert decode.attributes["headgate.finish"] == "length"
    assert found[CHAT].attributes["gen_ai.usage.output_tokens"] == 10
    assert found[SERVER].attributes["headgate.late"] is False
    assert found["admission"].attributes["headgate.decision"] == "admitted"


def test_what_is_neither_sampled_nor_matters_leaves_nothing(tmp_path: Path) -> None:
    """At ratio 0 a request that went well has no span anywhere, and no step has."""

    async def scenario(traces: TracedStack) -> None:
        assert await traces.serve(request(1, ttft_s=5.0, tpot_s=1.0)) == "ok"

    left = traced(tmp_path, scenario)
    assert left.spans("r1") == []
    assert {role: len(tracing.held) for role, tracing in left.by_role.items()} == {
        "gateway": 0,  # has a ring of its own
        "admission": 0,
        "scheduler": 1,
        "worker": 1,
    }


@pytest.mark.parametrize("promise", [{"tpot_s": 0.001}, {"ttft_s": 0.01, "prompt": 400}], ids=["tpot", "ttft"])
def test_a_late_request_is_kept_whole_although_it_was_not_sampled(tmp_path: Path, promise: dict[str, float]) -> None:
    """The gateway finds out at the end; everybody else still has what it knew."""

    async def scenario(traces: TracedStack) -> None:
        # In a tier without contracts it is let in whatever is foreseen.
        assert await traces.serve(request(1, tier=2, **promise)) == "ok"  # type: ignore[arg-type]

    spans = traced(tmp_path, scenario).spans("r1")
    check_connected(spans)
    assert sorted(by_name(spans)) == sorted([SERVER, "admission", "queue", "prefill", "decode", CHAT])
    assert by_name(spans)[SERVER].attributes["headgate.late"] is True


def test_a_refusal_is_kept_with_its_figures_and_asks_nobody(tmp_path: Path) -> None:
    """Measured, threshold, limits and when to come back; a flood of them costs no message."""

    async def scenario(traces: TracedStack) -> None:
        traces.stack.tenants["gold"] = Tenant(name="gold", limits=Limits(rpm=1, tpm=10_000))
        assert await traces.serve(request(1)) == "ok"
        assert await traces.serve(request(2)) == "refused"
        assert traces.stack.traces.take_to_ask() == []

    left = traced(tmp_path, scenario)
    assert left.spans("r1") == []
    spans = left.spans("r2")
    check_connected(spans)
    found = by_name(spans)
    assert sorted(found) == sorted([SERVER, "admission"])
    facts = found["admission"].attributes
    assert facts["headgate.decision"] == "refused"
    assert facts["headgate.reason"] == "requests_per_minute"
    assert (facts["headgate.threshold"], facts["headgate.requests_limit"]) == (1.0, 1)
    assert isinstance(facts["headgate.retry_after_ms"], float)
    assert "limit of 1 requests" in found["admission"].error


def test_preempted_requests_are_kept_and_show_how_they_came_back(tmp_path: Path) -> None:
    """Only the scheduler knows; it tells the gateway, which asks everybody when the request ends."""

    async def scenario(traces: TracedStack) -> None:
        wanted = [request(i, prompt=40, outputs=60) for i in range(6)]
        assert await asyncio.gather(*map(traces.serve, wanted)) == ["ok"] * 6

    config = SchedulerConfig(force_preempt_every=25)
    left = traced(tmp_path, scenario, config=config)
    kept = [spans for i in range(6) if (spans := left.spans(f"r{i}"))]
    assert kept
    for spans in kept:
        check_connected(spans)
        found = by_name(spans)
        assert {SERVER, "admission", "queue", "prefill", "decode", CHAT} == set(found)
        told = events(found["decode"]) + events(found["prefill"])
        assert told.count("preempted") == told.count("resumed") > 0
        assert told.count("preempted") == found["decode"].attributes["headgate.preemptions"]
        assert len([span for span in spans if span.name == CHAT]) == 1 + told.count("preempted")


def test_a_failover_shows_both_attempts_and_where_the_gateway_went_on(tmp_path: Path) -> None:
    """A worker dies with the request: the first attempt ends handed back, and the second one ends it."""

    async def scenario(traces: TracedStack) -> None:
        serving = asyncio.create_task(traces.serve(request(1, outputs=200)))
        await asyncio.sleep(0.3)
        (home,) = [link.worker for link in traces.stack.scheduler.links if link.core.census().running]
        await traces.stack.kill("worker", home)
        assert await serving == "ok"

    spans = traced(tmp_path, scenario, workers=2).spans("r1")
    check_connected(spans)
    server = by_name(spans)[SERVER]
    (failover,) = [event for event in server.events if event.name == "failover"]
    assert failover.attributes["headgate.attempt"] == 2
    assert server.attributes["headgate.attempts"] == 2
    first, second = [span for span in spans if span.name == "decode"]
    assert (first.attributes["headgate.attempt"], second.attributes["headgate.attempt"]) == (1, 2)
    assert "handed_back" in events(first)
    assert first.attributes["headgate.worker"] != second.attributes["headgate.worker"]
    assert second.attributes["headgate.output_tokens"] == 200


def test_a_request_whose_client_left_shows_it_where_it_was(tmp_path: Path) -> None:
    """Sampled, since to leave is no failure of ours."""

    async def scenario(traces: TracedStack) -> None:
        assert await traces.serve(request(1, outputs=500), leave_after_s=0.3) == "cancelled"
        await traces.serve(request(2))  # with whose first step the worker hears of it

    found = by_name(traced(tmp_path, scenario, ratio=1.0).spans("r1"))
    assert "cancelled" in events(found[SERVER])
    assert "cancelled" in events(found["decode"])
    assert events(found[CHAT]) == ["slot_taken"]


def test_sampled_steps_and_the_requests_in_them_link_to_each_other(tmp_path: Path) -> None:
    """A step says what its batch was, and leads to its requests; they lead to it."""

    async def scenario(traces: TracedStack) -> None:
        await asyncio.gather(*(traces.serve(request(i, outputs=30)) for i in range(3)))

    left = traced(tmp_path, scenario, ratio=1.0, steps_every=10)
    decode = by_name(left.spans("r1"))["decode"]
    assert decode.links
    traces, spans = zip(*(link.split("-") for link in decode.links), strict=True)
    steps = [span for trace in set(traces) for span in left.trace(trace)]
    assert {span.name for span in steps} == {"step"}
    assert {span.span_id for span in steps} == set(spans)
    facts = steps[0].attributes
    assert facts["headgate.step"] % 10 == 0  # type: ignore[operator]
    assert facts["headgate.rows"] == 3
    assert facts["headgate.decode_tokens"] + facts["headgate.prefill_tokens"] >= 3  # type: ignore[operator]
    assert facts["headgate.worker"] == "w0"
    assert facts["headgate.actual_ms"] > 0  # type: ignore[operator]
    assert {"headgate.predicted_ms", "headgate.epoch", "headgate.model"} <= set(facts)
    assert decode.trace_id in {link.split("-")[0] for link in steps[0].links}
