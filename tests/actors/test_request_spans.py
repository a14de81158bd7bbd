"""Spans of a scheduler from bare facts: what is told, what is left out, and that nothing stays."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from actors.messages import Keep
from actors.request_life import MOST_CHUNKS
from actors.request_spans import RequestSpans
from actors.step_spans import StepSpans
from observability.tracing import Tracing, setup_tracing
from policies.events import Event, Finished, FirstToken, Preempted, Reclaimed, Scheduled
from policies.vocabulary import Finish, Request, Sampling

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = PARENT[:-2] + "00"
WHO = {"request": "r", "attempt": 1, "tenant": "gold"}


@pytest.fixture
def exported() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exported: InMemorySpanExporter) -> Iterator[Tracing]:
    made = setup_tracing("scheduler", "s", data_dir=None, exporters=[exported], now_ns=lambda: 10_000_000_000)
    yield made
    made.shutdown()


def request(traceparent: str = PARENT, *, attempt: int = 1) -> Request:
    return Request(
        id="r",
        attempt=attempt,
        tenant="gold",
        model="m",
        gateway="g0",
        prompt=b"\0" * 400,
        max_tokens=3,
        sampling=Sampling(seed=1),
        traceparent=traceparent,
    )


def scheduled(at: float) -> Event:
    return Scheduled(**WHO, gateway="g0", queued_at=0.0, at=at, cached_tokens=16, step=1)  # type: ignore[arg-type]


def first_token(at: float) -> Event:
    return FirstToken(**WHO, gateway="g0", queued_at=0.0, first_scheduled_at=1.0, at=at, late_s=None)  # type: ignore[arg-type]


def preempted(at: float, *, swapped: int = 0) -> Event:
    return Preempted(**WHO, kind="swap", lost_tokens=0, blocks=3, at=at, swapped_blocks=swapped)  # type: ignore[arg-type]


def finished(at: float, finish: Finish = Finish.length, *, ran: bool = True) -> Event:
    times = {"queued_at": 0.0, "first_scheduled_at": 1.0 if ran else None, "first_token_at": 2.0 if ran else None}
    counts = {"prompt_tokens": 100, "generated": 3, "cached_tokens": 16, "preemptions": 0}
    return Finished(**WHO, gateway="g0", finish=finish, at=at, **counts, **times)  # type: ignore[arg-type]


def step(
    number: int, at: float, *, chunk: int = 0, rows: tuple[Request, ...] = (), entered: tuple[Any, ...] = ()
) -> Any:
    return SimpleNamespace(
        number=number,
        at=at,
        actual_s=0.25,
        predicted_s=0.2,
        worker="w0",
        epoch=7,
        rows=len(rows),
        prefill_tokens=chunk,
        decode_tokens=len(rows),
        chunks=lambda: [(request(), chunk)],
        requests=lambda: rows,
        entered=lambda: list(entered),
    )


def spans(tracing: Tracing, exported: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    tracing.flush()
    return {span.name: span for span in exported.get_finished_spans()}


def told(span: ReadableSpan) -> list[tuple[str, float]]:
    """Events and their instants on the scheduler's clock: it shows 5 s when the wall clock shows 10."""
    return [(event.name, (event.timestamp - 5_000_000_000) / 1e9) for event in span.events]


def test_what_happened_is_told_by_the_phase_in_which_it_did(tracing: Tracing, exported: InMemorySpanExporter) -> None:
    """Also what happens at the border: the step that brings the first token belongs to the prefill."""
    made = RequestSpans(tracing)
    made.taken(request(), 0.5)
    made.placed("r", "w0")
    made.heard([scheduled(1.0)])
    made.stepped(step(1, 1.5, chunk=64))
    made.heard([preempted(1.6, swapped=2)])
    made.stepped(step(2, 1.75, entered=(SimpleNamespace(request="r", computed=64),)))
    made.stepped(step(3, 2.0, chunk=20))
    made.heard([first_token(2.0), preempted(3.0)])
    made.heard([Reclaimed(**WHO, lost_tokens=16, blocks=1, swapped_blocks=0, at=3.5)])  # type: ignore[arg-type]
    made.stepped(step(4, 4.0, chunk=16, entered=(SimpleNamespace(request="r", computed=68),)))
    made.heard([finished(5.0)])
    found = spans(tracing, exported)
    assert {name: told(span) for name, span in found.items()} == {
        "queue": [],
        "prefill": [
            ("chunk", 1.5),
            ("resumed", 1.5),
            ("preempted", 1.6),
            ("swapped", 1.6),
            ("chunk", 2.0),
            ("first_token", 2.0),
        ],
        "decode": [("preempted", 3.0), ("reclaimed", 3.5), ("resumed", 3.75), ("chunk", 4.0)],
    }
    assert found["queue"].start_time == 5_500_000_000
    assert found["decode"].end_time == 10_000_000_000
    assert (found["decode"].attributes or {})["headgate.preemptions"] == 2
    assert (found["prefill"].attributes or {})["headgate.chunks"] == 2


def test_chunks_beyond_a_bound_are_counted_alone(tracing: Tracing, exported: InMemorySpanExporter) -> None:
    """A prompt of a hundred thousand tokens does not make a span of a hundred thousand bytes."""
    made = RequestSpans(tracing)
    made.taken(request(), 0.0)
    made.heard([scheduled(1.0)])
    for number in range(500):
        made.stepped(step(number, 1.5, chunk=1))
    made.heard([first_token(2.0), finished(5.0)])
    prefill = spans(tracing, exported)["prefill"]
    assert (prefill.attributes or {})["headgate.chunks"] == 500
    assert len(told(prefill)) == MOST_CHUNKS + 1


def test_one_that_never_ran_is_kept_with_the_reason(tracing: Tracing, exported: InMemorySpanExporter) -> None:
    """It was shed: its client gets an error, so it matters, sampled or not."""
    made = RequestSpans(tracing)
    made.taken(request(UNSAMPLED), 0.0)
    made.heard([finished(5.0, Finish.error, ran=False)])
    found = spans(tracing, exported)
    assert list(found) == ["queue"]
    assert (found["queue"].attributes or {})["headgate.finish"] == "shed"
    assert "deadline" in (found["queue"].status.description or "")


def test_the_gateway_of_a_preempted_request_is_to_be_told_once_and_only_if_it_is_not_sampled(tracing: Tracing) -> None:
    """It keeps a trace that everybody records anyway."""
    for traceparent, wanted in ((UNSAMPLED, ["g0"]), (PARENT, [])):
        made = RequestSpans(tracing)
        made.taken(request(traceparent), 0.0)
        made.heard([scheduled(1.0)])
        assert [life.gateway for life in made.heard([preempted(1.5), preempted(1.7)])] == wanted
        assert made.heard([preempted(1.8)]) == []


def test_a_newer_attempt_ends_the_spans_of_the_older(tracing: Tracing, exported: InMemorySpanExporter) -> None:
    """Whose end is then told of nobody; and what comes late of it changes nothing."""
    made = RequestSpans(tracing)
    made.taken(request(), 0.0)
    made.heard([scheduled(1.0)])
    made.taken(request(attempt=2), 3.0)
    made.heard([first_token(3.5), finished(4.0, Finish.cancelled)])
    found = spans(tracing, exported)
    assert sorted(found) == ["prefill", "queue"]
    assert (found["prefill"].attributes or {})["headgate.finish"] == "superseded"


def test_what_a_gateway_asks_for_is_recorded_before_and_after_the_end(
    tracing: Tracing, exported: InMemorySpanExporter
) -> None:
    """Of a request that is not sampled nothing is, until it asks."""
    made = RequestSpans(tracing)
    context: Any = None
    made.taken(request(UNSAMPLED), 0.0)
    made.heard([scheduled(1.0), first_token(2.0), finished(3.0)])
    assert spans(tracing, exported) == {}
    made.asked(Keep(requests=["r"]), context)
    assert sorted(spans(tracing, exported)) == ["decode", "prefill", "queue"]


def test_nothing_is_remembered_where_spans_go_nowhere() -> None:
    """Without a store and a collector tracing costs nothing."""
    tracing = setup_tracing("scheduler", "s", data_dir=None)
    made = RequestSpans(tracing)
    made.taken(request(UNSAMPLED), 0.0)
    made.heard([scheduled(1.0), preempted(1.5), finished(3.0)])
    made.stepped(step(1, 1.0, chunk=5))
    assert len(tracing.held) == 0
    tracing.shutdown()


def test_a_sampled_step_tells_its_batch_and_links_to_few(tracing: Tracing, exported: InMemorySpanExporter) -> None:
    """To those of its requests that are sampled, at most 32; steps between the sampled ones are not told."""
    made = StepSpans(tracing, RequestSpans(tracing), model="m")
    rows = (request(UNSAMPLED), *[request()] * 40)
    for number in range(99, 202):
        made.stepped(step(number, 2.0, chunk=7, rows=rows))
    tracing.flush()
    first, second = exported.get_finished_spans()
    assert first.attributes == {
        "headgate.model": "m",
        "headgate.worker": "w0",
        "headgate.epoch": 7,
        "headgate.step": 100,
        "headgate.rows": 41,
        "headgate.prefill_tokens": 7,
        "headgate.decode_tokens": 41,
        "headgate.predicted_ms": 200.0,
        "headgate.actual_ms": 250.0,
    }
    assert (second.attributes or {})["headgate.step"] == 200
    assert len(first.links) == 32
    assert (first.parent, (first.end_time or 0) - (first.start_time or 0)) == (None, 250_000_000)
