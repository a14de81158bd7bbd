"""One stream at its gateway: tokens in order, none twice, and what a resume submits."""

from __future__ import annotations

import pytest

from gateway.stream import Stream, Took
from policies.vocabulary import Finish, Request, Sampling, pack_tokens, unpack_tokens


def make_stream(*, ttft_s: float | None = None) -> Stream:
    request = Request("r", 1, "t", "m", "g", pack_tokens([1, 2]), 10, Sampling(), ttft_s=ttft_s)
    return Stream(request, arrived=100.0, deadline=None if ttft_s is None else 100.0 + ttft_s)


def test_tokens_are_taken_once_and_in_order() -> None:
    """The next index is new, an earlier one a duplicate, a later one a gap."""
    stream = make_stream()
    assert stream.take(1, 0, 7, 0, None, 101.0) is Took.new
    assert stream.take(1, 0, 7, 0, None, 101.0) is Took.ignored
    assert stream.take(1, 2, 9, 0, None, 101.0) is Took.gap
    assert stream.tokens == [7]


def test_another_attempt_is_ignored() -> None:
    """A worker that was given up may go on sending: its tokens are of an older attempt."""
    stream = make_stream()
    stream.take(1, 0, 7, 0, None, 101.0)
    stream.resume(102.0)
    assert stream.take(1, 1, 8, 0, None, 102.0) is Took.ignored
    assert stream.take(2, 1, 9, 0, None, 102.0) is Took.new
    assert stream.tokens == [7, 9]


def test_a_resume_carries_what_the_client_has_seen() -> None:
    """Attempt + 1 brings exactly the tokens so far, and the time that is left for the first."""
    stream = make_stream(ttft_s=2.0)
    resumed = stream.resume(100.5)
    assert resumed is not None
    assert (resumed.attempt, resumed.ttft_s, resumed.generated) == (2, 1.5, b"")
    stream.take(2, 0, 7, 0, None, 101.0)
    resumed = stream.resume(101.5)
    assert resumed is not None
    assert (resumed.attempt, resumed.ttft_s, unpack_tokens(resumed.generated)) == (3, None, [7])


def test_what_is_over_is_not_resumed() -> None:
    """After the last token nothing is taken and nothing submitted."""
    stream = make_stream()
    stream.take(1, 0, 7, Finish.stop, None, 101.0)
    assert stream.over
    assert stream.resume(102.0) is None
    assert stream.take(1, 1, 8, 0, None, 102.0) is Took.ignored


def test_a_request_that_breaks_every_worker_is_given_up() -> None:
    """So many attempts in a row without a token end in an error; a token in between starts the count again."""
    stream = make_stream()
    for _ in range(Stream.MAX_STALLED_ATTEMPTS):
        assert stream.resume(101.0) is not None
    stream.take(stream.request.attempt, 0, 7, 0, None, 102.0)
    for _ in range(Stream.MAX_STALLED_ATTEMPTS):
        assert stream.resume(103.0) is not None
    assert stream.resume(104.0) is None
    assert "attempts" in stream.error


def test_times_are_those_of_the_client() -> None:
    """TTFT counts from arrival at the gateway, TPOT is the mean over the later tokens."""
    stream = make_stream()
    for index, now in enumerate((100.4, 100.5, 100.8)):
        stream.take(1, index, 7, 0, None, now)
    assert stream.ttft_s == pytest.approx(0.4)
    assert stream.tpot_s == pytest.approx(0.2)
