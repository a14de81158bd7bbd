"""Options of the commands that talk to a running stack, and the types of values that people type."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from headgate.commands.options import data_option

__all__ = ["Duration", "Instant", "OrNone", "client_options", "json_option"]

F = TypeVar("F", bound=Callable[..., Any])

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhdw])", re.ASCII)


def json_option(command: F) -> F:
    """`--json`, as the parameter `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def client_options(command: F) -> F:
    """What a client of a running stack needs: `--data` (a path as text), `--admin-url`, `--json`."""
    command = json_option(command)
    command = click.option(
        "--admin-url",
        envvar="HEADGATE_ADMIN_URL",
        show_envvar=True,
        help="Admin API of the stack, where it is not on this machine.",
    )(command)
    data: F = data_option(command)  # type: ignore[assignment]
    return data


class Duration(click.ParamType[float]):
    """`90s`, `15m`, `12h`, `30d`, `2w`: seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = _DURATION.fullmatch(str(value).strip().lower())
        if match is None and str(value).strip() != "0":
            self.fail(f"{value!r} is not a duration such as 90s, 15m, 12h, 30d or 0", param, ctx)
        return 0.0 if match is None else float(match[1]) * _UNITS_S[match[2]]


class Instant(click.ParamType[datetime.datetime]):
    """A duration from now (`30d`), or an ISO date or time (`2027-01-01`, UTC where it has no zone)."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime.datetime:
        if isinstance(value, datetime.datetime):
            return value
        text = str(value).strip()
        try:
            if _DURATION.fullmatch(text.lower()):
                return datetime.datetime.now(datetime.UTC) + datetime.timedelta(
                    seconds=Duration().convert(text, param, ctx)
                )
            instant = datetime.datetime.fromisoformat(text)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is neither a duration such as 30d nor a date such as 2027-01-01", param, ctx)
        return instant if instant.tzinfo is not None else instant.replace(tzinfo=datetime.UTC)


class OrNone(click.ParamType[Any]):
    """A number, or `none` for no promise or no limit."""

    def __init__(self, kind: type[int] | type[float]) -> None:
        self._kind = kind
        self.name = "integer|none" if kind is int else "number|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float | str:
        if isinstance(value, str) and value.lower() == "none":
            return "none"
        try:
            return self._kind(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor `none`", param, ctx)
