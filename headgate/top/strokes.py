"""Bars and sparklines of characters."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

__all__ = ["bar", "share_line", "sparkline", "stacked_bar"]

_LEVELS = "▁▂▃▄▅▆▇█"
_PARTS = " ▏▎▍▌▋▊▉█"


def sparkline(values: Sequence[float], *, width: int, most: float) -> str:
    """The last `width` values, one a character, against `most`. Nothing is a space."""
    scale = (len(_LEVELS) - 1) / most if most > 0 else 0.0
    drawn = ["" if value <= 0 else _LEVELS[min(len(_LEVELS) - 1, round(value * scale))] for value in values[-width:]]
    return "".join(character or " " for character in drawn)


def share_line(shares: Sequence[float | None], *, width: int, aim: float) -> Text:
    """The last `width` shares of 1, in red where below `aim`; a dot where nothing is known.

    The upper half of the scale is drawn, since that is where contracts are.
    """
    line = Text(no_wrap=True)
    for share in shares[-width:]:
        if share is None:
            line.append("·", "dim")
        else:
            level = round(max(0.0, share - 0.5) * 2 * (len(_LEVELS) - 1))
            line.append(_LEVELS[level], "green" if share >= aim else "red")
    return line


def bar(share: float, *, width: int) -> str:
    """A share of 1 of `width` characters, to an eighth of one."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (_PARTS[rest] if rest else "")).ljust(width)


def stacked_bar(parts: Sequence[tuple[float, str]], *, width: int, most: float) -> Text:
    """Amounts with their styles, one after the other, against `most`."""
    line, drawn, total = Text(no_wrap=True), 0, 0.0
    for amount, style in parts:
        total += amount
        upto = min(width, round(width * total / most)) if most > 0 else 0
        line.append("█" * (upto - drawn), style)
        drawn = max(drawn, upto)
    line.append(" " * (width - drawn))
    return line
