from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import SpanContext, TraceFlags

from observability.traceparent import format_traceparent, is_sampled, parse_traceparent

GOOD = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_the_example_of_the_standard_is_read() -> None:
    """Ids and the sampled flag come out as they went in, and the context counts as remote."""
    context = parse_traceparent(GOOD)
    assert context is not None
    assert (f"{context.trace_id:032x}", f"{context.span_id:016x}") == (GOOD[3:35], GOOD[36:52])
    assert context.trace_flags.sampled
    assert context.is_remote


@given(trace_id=st.integers(1, 2**128 - 1), span_id=st.integers(1, 2**64 - 1), sampled=st.booleans())
def test_formatting_and_parsing_are_inverse(trace_id: int, span_id: int, sampled: bool) -> None:
    """Any valid context survives the way through the envelope."""
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(int(sampled)))
    text = format_traceparent(context)
    assert parse_traceparent(text) == context
    assert is_sampled(text) is sampled


@pytest.mark.parametrize(
    "bad",
    [
        None,
        "",
        "nonsense",
        GOOD.upper(),
        GOOD + "-more",  # version 00 has four fields
        "ff" + GOOD[2:],
        GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32),
        GOOD.replace("00f067aa0ba902b7", "0" * 16),
        GOOD[:-1],
        GOOD + "\n",
        "01" + GOOD[2:] + "-" + "x" * 1000,
    ],
)
def test_what_is_malformed_begins_a_new_trace(bad: str | None) -> None:
    """A caller's bad header is ignored, never an error and never half used."""
    assert parse_traceparent(bad) is None
    assert not is_sampled(bad)


def test_a_later_version_may_append_fields() -> None:
    """The standard promises that the first four fields keep their meaning."""
    assert parse_traceparent("cc" + GOOD[2:] + "-what-the-future-brings") is not None


@given(st.text(max_size=80))
def test_no_text_raises(text: str) -> None:
    """The header is attacker-controlled."""
    parse_traceparent(text)


def test_an_invalid_context_formats_to_nothing() -> None:
    """So that an envelope without a trace carries an empty string."""
    assert format_traceparent(SpanContext(0, 0, is_remote=False)) == ""
