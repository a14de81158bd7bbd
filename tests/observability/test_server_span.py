from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from observability.span_store import Span, find_trace
from observability.tracing import MOST_EVENTS, Tracing, setup_tracing

UNSAMPLED = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"


@pytest.fixture
def tracing(tmp_path: Path) -> Iterator[Tracing]:
    """That samples nothing."""
    made = setup_tracing("gateway", "g-1", data_dir=tmp_path, sample_ratio=0.0)
    yield made
    made.shutdown()


def _found(tracing: Tracing, tmp_path: Path) -> list[Span]:
    tracing.flush()
    return find_trace(tmp_path, "r")


@pytest.mark.parametrize("late", [False, True], ids=["before its end", "after its end"])
def test_a_span_that_is_kept_is_recorded_once_under_the_ids_that_it_gave_out(
    tracing: Tracing, tmp_path: Path, late: bool
) -> None:
    """Those behind the gateway were told them long before, as not sampled."""
    span = tracing.start_request("POST", request_id="r", traceparent=UNSAMPLED, start_unix_ns=5)
    span.set_attributes({"headgate.tenant": "gold"})
    span.add_event("first_token", unix_ns=6)
    span.fail("no worker")
    assert span.traceparent.endswith("-00")
    if not late:
        span.keep()
    span.end(9)
    assert len(_found(tracing, tmp_path)) == (not late)
    span.keep()
    span.end(10)
    (found,) = _found(tracing, tmp_path)
    assert f"00-{found.trace_id}-{found.span_id}-00" == span.traceparent
    assert (found.parent_id, found.start_unix_ns, found.end_unix_ns) == (UNSAMPLED[36:52], 5, 9)
    assert (found.attributes["headgate.tenant"], found.error) == ("gold", "no worker")
    assert [event.name for event in found.events] == ["first_token"]


def test_what_is_recorded_late_joins_the_span_that_is_kept(tracing: Tracing, tmp_path: Path) -> None:
    """`keep` overrules the flag; without it the flag is followed."""
    span = tracing.start_request("POST", request_id="r")
    for keep in (False, True):
        made = tracing.record(
            f"queue {keep}",
            request_id="r",
            parent_traceparent=span.traceparent,
            start_unix_ns=1,
            end_unix_ns=2,
            keep=keep,
        )
        assert bool(made) == keep
    span.keep()
    span.end()
    queue, server = sorted(_found(tracing, tmp_path), key=lambda span: span.kind)
    assert (queue.name, queue.parent_id, queue.trace_id) == ("queue True", server.span_id, server.trace_id)


def test_a_step_begins_a_trace_of_its_own_whatever_the_ratio(tracing: Tracing) -> None:
    """Whoever records it has decided already."""
    step = {"request_id": "", "parent_traceparent": None, "start_unix_ns": 1, "end_unix_ns": 2}
    assert tracing.record("step", **step) == ""  # type: ignore[arg-type]
    assert tracing.record("step", **step, keep=True).endswith("-01")  # type: ignore[arg-type]


def test_events_are_bounded(tracing: Tracing, tmp_path: Path) -> None:
    """A request that fails over for ever does not grow for ever."""
    span = tracing.start_request("POST", request_id="r")
    for _ in range(10 * MOST_EVENTS):
        span.add_event("failover")
    span.keep()
    span.end()
    (found,) = _found(tracing, tmp_path)
    assert len(found.events) == MOST_EVENTS


def test_sampling_off_by_its_standard_variable_turns_everything_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OTEL_SDK_DISABLED: no spans, no thread, no file; ids are still given out."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    tracing = setup_tracing("gateway", "g-1", data_dir=tmp_path)
    assert (tracing.exports, tracing.steps_every) == (False, 0)
    span = tracing.start_request("POST", request_id="r")
    span.end()
    tracing.shutdown()
    assert len(span.traceparent) == 55
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("ratio", "every"), [(1.0, 100), (0.05, 100), (0.001, 1000), (0.0, 0)])
def test_steps_are_sampled_less_often_than_requests_never_more(tmp_path: Path, ratio: float, every: int) -> None:
    """One in a hundred, or as the ratio says if that is less; none where no trace begins."""
    tracing = setup_tracing("scheduler", "s-1", data_dir=tmp_path, sample_ratio=ratio)
    assert tracing.steps_every == every
    tracing.shutdown()
