"""Traces as CSV: those of the Azure dataset, and the plain form `arrival_s,tenant,prompt_tokens,output_tokens`.

Columns are found by their names, in any order and any case; others are passed over.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from simulator.errors import BadTrace
from simulator.workload.fields import FieldError, Row, arrival, number, tokens

__all__ = ["read_csv", "split_line"]

_AZURE = ("timestamp", "contexttokens", "generatedtokens")
_PLAIN = ("arrival_s", "prompt_tokens", "output_tokens")
_SPELLED = "TIMESTAMP,ContextTokens,GeneratedTokens (Azure) or arrival_s[,tenant],prompt_tokens,output_tokens"


def read_csv(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[Row]:
    """The requests of a CSV trace. The first line names the columns.

    Azure stamps become seconds after the first one; `arrival_s` is taken as it stands.

    :param lines: as `numbered_lines` gives them.
    :raises BadTrace: a column is missing, a field is wrong, or arrivals are not in order.
    """
    header_line, header = next(lines)
    names = [name.strip().lower() for name in split_line(path, header_line, header)]
    columns = _AZURE if "timestamp" in names or "contexttokens" in names else _PLAIN
    missing = [name for name in columns if name not in names]
    if missing:
        raise BadTrace(
            path,
            header_line,
            f"column {', '.join(missing)} is missing in {header!r}; columns of a trace are {_SPELLED}",
        )
    twice = sorted({name for name in (*columns, "tenant") if names.count(name) > 1})
    if twice:
        raise BadTrace(path, header_line, f"column {', '.join(twice)} is there twice; each is named once")
    at, prompt, output = (names.index(name) for name in columns)
    tenant = names.index("tenant") if columns is _PLAIN and "tenant" in names else None
    instant = _azure_clock(names[at]) if columns is _AZURE else _plain_clock
    before, before_text = 0.0, ""
    for line, text in lines:
        fields = split_line(path, line, text)
        if len(fields) != len(names):
            raise BadTrace(path, line, f"{len(fields)} fields in {text[:200]!r}; the header names {len(names)} columns")
        try:
            at_s = instant(fields[at])
            row = Row(
                line,
                at_s,
                None if tenant is None else _named(fields[tenant]),
                tokens(columns[1], fields[prompt]),
                tokens(columns[2], fields[output]),
            )
        except FieldError as error:
            raise BadTrace(path, line, str(error)) from None
        if at_s < before:
            raise BadTrace(
                path,
                line,
                f"{columns[0]} {fields[at].strip()} comes after {before_text}; arrivals must be in order of time",
            )
        before, before_text = at_s, fields[at].strip()
        yield row


def split_line(path: Path, line: int, text: str) -> list[str]:
    """The fields of a line.

    :raises BadTrace: its quotes are not closed.
    """
    if '"' not in text:
        return text.split(",")
    try:
        return next(csv.reader([text], strict=True))
    except csv.Error as error:
        raise BadTrace(path, line, f"{text[:200]!r} is no line of CSV ({error}); close what is quoted") from None


def _named(text: str) -> str:
    name = text.strip()
    if not name:
        raise FieldError("tenant is empty; every line names its tenant, or the trace has no such column")
    return name


def _plain_clock(text: str) -> float:
    return arrival("arrival_s", number("arrival_s", text))


def _azure_clock(name: str) -> Callable[[str], float]:
    """Reads '2023-11-16 18:15:46.6805900', with or without an offset, as seconds after the first such stamp."""
    seconds: dict[str, float] = {}  # of the last whole second: most stamps share it with the one before
    first: list[tuple[float, float]] = []

    def read(text: str) -> float:
        stamp = text.strip()
        whole, dot, rest = stamp.partition(".")
        digits = len(rest) - len(rest.lstrip("0123456789"))
        offset = rest[digits:]
        key = whole + offset
        known = seconds.get(key)
        if known is None:
            try:
                parsed = datetime.fromisoformat(key)
            except ValueError:
                parsed = None
            if parsed is None or (dot and not digits) or ":" not in whole:
                raise FieldError(f"{name} is {stamp!r}; an instant like 2023-11-16 18:15:46.6805900 is needed")
            known = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
            seconds.clear()
            seconds[key] = known
        elif dot and not digits:
            raise FieldError(f"{name} is {stamp!r}; an instant like 2023-11-16 18:15:46.6805900 is needed")
        fraction = int(rest[:digits]) / 10**digits if digits else 0.0
        if not first:
            first.append((known, fraction))
        # Whole seconds and fractions apart: an epoch as one float has no room for 100 ns.
        return (known - first[0][0]) + (fraction - first[0][1])

    return read
