"""`headgate ps`: the processes of a running stack."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from headgate.commands.options import data_option
from headgate.errors import HeadgateError
from headgate.output import emit
from headgate.supervisor import STATE_FILE

__all__ = ["command", "processes"]

_COLUMNS = ("role", "instance", "pid", "epoch", "state", "restarts")


@click.command("ps")
@data_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(data: str, as_json: bool) -> None:
    """List every process of the stack that runs in --data: role, instance, pid, epoch of its lease, state.

    \b
    Example:
      headgate ps --json
    """
    rows = processes(Path(data))
    if not as_json:  # a process id is a name, not a quantity
        rows = [{**row, "pid": str(row["pid"])} for row in rows]
    emit(rows, columns=_COLUMNS, as_json=as_json)


def processes(data: Path) -> list[dict[str, Any]]:
    """What `headgate ps` prints.

    :raises HeadgateError: no stack runs there.
    """
    try:
        state = json.loads((data / STATE_FILE).read_text())
        os.kill(state["supervisor_pid"], 0)
    except (FileNotFoundError, ProcessLookupError):
        raise HeadgateError(f"no stack is running for --data {data}: start one with `headgate serve`") from None
    rows: list[dict[str, Any]] = state["processes"]
    return rows
