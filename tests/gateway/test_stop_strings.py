"""Stop strings are found wherever the text is cut, and withhold no more than they must."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from gateway.text.stop import StopFinder

STOPS = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3)
PIECES = st.lists(st.text("abc", max_size=4), max_size=12)


def expected(text: str, stops: list[str]) -> str:
    """By the definition: cut before the match that ends first, and of those that end there the longest."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


@given(pieces=PIECES, stops=STOPS)
@example(pieces=["aab", "c"], stops=["abc"])
@example(pieces=["a", "b", "c"], stops=["abcc", "b"])
def test_any_split_gives_the_same_text(pieces: list[str], stops: list[str]) -> None:
    """What is shown is the text before the first match, however it came."""
    finder = StopFinder(stops)
    shown = "".join(map(finder.feed, pieces)) + finder.finish()
    assert shown == expected("".join(pieces), stops)
    assert (finder.found is not None) == (shown != "".join(pieces))


@given(pieces=PIECES, stops=STOPS)
def test_no_more_is_withheld_than_may_be_a_beginning(pieces: list[str], stops: list[str]) -> None:
    """After every piece, what is held back is the beginning of a stop string, and nothing longer is."""
    finder = StopFinder(stops)
    text = shown = ""
    for piece in pieces:
        text += piece
        shown += finder.feed(piece)
        if finder.found is not None:
            break
        held = text[len(shown) :]
        beginnings = {text[at:] for at in range(len(text)) if any(stop.startswith(text[at:]) for stop in stops)}
        assert held == max(beginnings, key=len, default="")


def test_nothing_is_shown_after_a_match() -> None:
    """The stop string and all behind it are gone for good."""
    finder = StopFinder(["\n\n"])
    assert finder.feed("one\n") == "one"
    assert finder.feed("\ntwo") == ""
    assert finder.found == "\n\n"
    assert finder.feed("three") + finder.finish() == ""
