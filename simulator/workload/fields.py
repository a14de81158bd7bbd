"""One request of a trace before its tenant is known, and the numbers of its fields, read strictly.

`int("1_000")` and `float("nan")` are what Python takes for numbers; in a trace they are mistakes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = ["LONGEST_TOKENS", "FieldError", "Row", "arrival", "exact_tokens", "number", "tokens"]

#: Token counts above are a wrong unit or a wrong column.
LONGEST_TOKENS = 2**31 - 1


class FieldError(Exception):
    """What is wrong with a field; the reader of the format adds the file and the line."""


class Row(NamedTuple):
    """A request as its trace tells it, in the order of the file."""

    line: int
    at_s: float
    tenant: str | None  # None: the trace does not say
    prompt_tokens: int
    output_tokens: int
    prefix: tuple[int, ...] = ()


def number(name: str, text: str) -> float:
    """A finite number.

    :raises FieldError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
        if not text.strip():
            raise FieldError(f"{name} is empty; a number is needed") from None
    if not math.isfinite(value) or "_" in text:
        raise FieldError(f"{name} is {text.strip()!r}; a finite number is needed")
    return value


def arrival(name: str, value: float) -> float:
    """An instant, from 0.

    :raises FieldError: it is before 0 or not finite.
    """
    if not math.isfinite(value):
        raise FieldError(f"{name} is {value!r}; a finite number is needed")
    if value < 0:
        raise FieldError(f"{name} is {value!r}; an arrival is at 0 or later")
    return value


def tokens(name: str, text: str) -> int:
    """A count of tokens from 0; "374.0" is one too, as tables with gaps are written.

    :raises FieldError: it is none.
    """
    if text.isascii() and text.isdigit() and len(text) < 16:
        return exact_tokens(name, int(text))
    value = number(name, text)
    if value != int(value):
        raise FieldError(f"{name} is {text.strip()!r}; a whole number of tokens is needed")
    return exact_tokens(name, int(value))


def exact_tokens(name: str, value: object) -> int:
    """A count of tokens from 0, as JSON gives it.

    :raises FieldError: it is no whole number, negative, or beyond LONGEST_TOKENS.
    """
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise FieldError(f"{name} is {value!r}; a whole number of tokens is needed")
    if value < 0:
        raise FieldError(f"{name} is {value}; a number of tokens cannot be negative")
    if value > LONGEST_TOKENS:
        raise FieldError(f"{name} is {value}; more than {LONGEST_TOKENS} tokens are a wrong unit or a wrong column")
    return value
