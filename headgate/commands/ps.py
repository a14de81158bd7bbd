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

__all__ = ["ps"]


@click.command()
@data_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ps(data: str, as_json: bool) -> None:
    """List every process of the stack that runs in --data: role, instance, pid, epoch of its lease, state.

    \b
    Example:
      headgate ps --json
    """
    rows = processes(Path(data))
    emit(rows, columns=["role", "instance", "pid", "epoch", "state", "restarts"], as_json=as_json)


def processes(data: Path) -> list[dict[str, Any]]:
    """Rows of `headgate ps`. Raises HeadgateError where no stack runs."""
    path = data / STATE_FILE
    try:
        state = json.loads(path.read_text())
        os.kill(state["supervisor_pid"], 0)
    except (FileNotFoundError, ProcessLookupError):
        raise HeadgateError(f"no stack is running for --data {data}: start one with `headgate serve`") from None
    rows: list[dict[str, Any]] = state["processes"]
    return rows
