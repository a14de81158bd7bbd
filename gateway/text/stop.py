"""Stop strings in a stream of text whose pieces end anywhere.

Text is withheld only while it may be the beginning of a stop string. Where several match, the one that ends first
counts (of those the longest), so the result does not depend on how the text was cut.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["StopFinder"]


class StopFinder:
    """One stream of text and its stop strings (none of them empty)."""

    __slots__ = ("_first", "_held", "_longest", "_stops", "found")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._first = {stop[0] for stop in stops}
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.found: str | None = None  # the stop string that was met

    def feed(self, text: str) -> str:
        """What may be shown of the text so far, after what was returned before. After a match it is always empty.

        The stop string itself and what follows it are never shown.
        """
        if self.found is not None:
            return ""
        text = self._held + text
        matches = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if matches:
            _, start, self.found = min(matches)
            self._held = ""
            return text[:start]
        shown = self._safe(text)
        self._held = text[shown:]
        return text[:shown]

    def finish(self) -> str:
        """What was withheld: the text is over, so it was no stop string."""
        held, self._held = self._held, ""
        return held

    def _safe(self, text: str) -> int:
        """Where the longest end of `text` begins that is the beginning of a stop string."""
        for at in range(max(len(text) - self._longest + 1, 0), len(text)):
            if text[at] in self._first and any(stop.startswith(text[at:]) for stop in self._stops):
                return at
        return len(text)
