"""What commands print: tables for people, JSON for programs; both on stdout, remarks on stderr."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["emit", "emit_csv", "print_json", "print_record", "remark"]

# Wide enough that nothing is cut where there is no terminal to fit into.
_PIPE_WIDTH = 240


def print_json(value: object) -> None:
    """Indented, one trailing newline."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def emit(
    rows: Sequence[Mapping[str, Any]], *, columns: Mapping[str, str] | Sequence[str], as_json: bool, empty: str = ""
) -> None:
    """Rows as a JSON array, or as a table of `columns` (fields, or fields to headings). No rows: the remark `empty`.

    Numbers are right-aligned, None is a dash.
    """
    if as_json:
        print_json(rows)
        return
    if not rows:
        remark(empty or "None.")
        return
    headings = columns if isinstance(columns, Mapping) else dict(zip(columns, columns, strict=True))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for field, heading in headings.items():
        is_number = any(isinstance(row.get(field), int | float) for row in rows)
        table.add_column(heading, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_text(row.get(field))) for field in headings))
    _console().print(table)


def emit_csv(rows: Sequence[Mapping[str, Any]], *, columns: Sequence[str]) -> None:
    """Rows as RFC 4180 has them, but for the ends of lines, which are those of this system's tools. None is empty."""
    writer = csv.DictWriter(sys.stdout, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def print_record(record: Mapping[str, Any]) -> None:
    """A field a line."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for field, value in record.items():
        table.add_row(field, Text(_text(value)))
    _console().print(table)


def remark(text: str) -> None:
    """For the person at the terminal; never part of the output."""
    click.echo(text, err=True)


def _console() -> Console:
    # Bound now, not at import: whoever runs a command may have put another stream there.
    out = sys.stdout
    return Console(file=out, width=None if out.isatty() else _PIPE_WIDTH, highlight=False)


def _text(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "-"
    return str(value)
