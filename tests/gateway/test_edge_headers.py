"""What headers say, in both directions."""

from __future__ import annotations

import pytest

from gateway.errors import ApiError
from gateway.headers import duration, hints, request_id
from gateway.hooks import NoHooks


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (-1, "0ms"),
        (0.012, "12ms"),
        (0.9996, "1s"),
        (6.5, "6.5s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (3725.25, "1h2m5.25s"),
    ],
)
def test_durations_are_written_as_the_openai_api_does(seconds: float, text: str) -> None:
    """Go's form, which its clients parse."""
    assert duration(seconds) == text


def test_request_ids_are_unique_and_in_order() -> None:
    """Ids of different milliseconds sort by time; all differ."""
    ids = [request_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert [one[:16] for one in ids] == sorted(one[:16] for one in ids)


@pytest.mark.parametrize(
    ("value", "retries"),
    [(b"2", 2), (b"-1", 0), (b"x", 0), (b"", 0), (b"9999", 100), (b"9" * 50, 0), ("²".encode(), 0)],
)
def test_a_malformed_retry_count_is_no_retry(value: bytes, retries: int) -> None:
    """These headers are hints: nothing in them is an error, and nothing of them is unbounded."""
    assert hints([(b"x-stainless-retry-count", value)]).retries == retries


@pytest.mark.parametrize(
    ("value", "seconds"), [(b"600", 600.0), (b"0.5", 0.5), (b"nan", None), (b"inf", None), (b"-3", None), (b"x", None)]
)
def test_a_malformed_read_timeout_is_none(value: bytes, seconds: float | None) -> None:
    """So is the read timeout."""
    assert hints([(b"x-stainless-read-timeout", value)]).read_timeout_s == seconds


def test_a_valid_trace_context_is_continued_and_a_bad_one_replaced() -> None:
    """The trace id of the client goes on with a new span id; without a valid one a new trace begins, unsampled."""
    sent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    went = NoHooks().start("POST /", request_id="req-1", traceparent=sent).traceparent
    assert went[:35] == sent[:35]
    assert went[36:52] != sent[36:52]
    assert went[-2:] == "01"
    for bad in (None, "", "00-0-0-0", "00-" + "0" * 32 + "-b7ad6b7169203331-01", "x" * 10_000):
        fresh = NoHooks().start("POST /", request_id="req-1", traceparent=bad).traceparent
        assert len(fresh) == 55
        assert fresh.endswith("-00")


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (None, []),
        (0.0, [(b"retry-after", b"1"), (b"retry-after-ms", b"1")]),
        (2.0001, [(b"retry-after", b"3"), (b"retry-after-ms", b"2001")]),
        (120.0, [(b"retry-after", b"120"), (b"retry-after-ms", b"120000")]),
        (121.0, [(b"retry-after", b"121"), (b"retry-after-ms", b"121000"), (b"x-should-retry", b"false")]),
    ],
)
def test_retry_times_are_rounded_up(after: float | None, expected: list[tuple[bytes, bytes]]) -> None:
    """Coming back early would be refused again; above 120 s the client is told not to by itself."""
    assert ApiError("no", retry_after_s=after).retry_headers() == expected
