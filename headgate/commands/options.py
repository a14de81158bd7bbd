"""The options that `serve` and `run` share: what a stack is made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from headgate.settings import Settings

__all__ = ["data_option", "stack_options"]

_DEFAULTS = Settings(data="")


def _absolute(context: click.Context, parameter: click.Parameter, value: str) -> str:
    return str(Path(value).resolve())


def data_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """--data DIR."""
    return click.option(
        "--data",
        default=".headgate",
        envvar="HEADGATE_DATA",
        show_default=True,
        callback=_absolute,
        help="Directory of everything that is kept: keys, usage, traces, logs.",
    )(function)


_OPTIONS = (
    click.option(
        "--model", default=_DEFAULTS.model, callback=_absolute, help="Model directory. [default: the demo model]"
    ),
    click.option("--model-name", default="", help="What clients call it. [default: the directory's name]"),
    click.option("--nats", default="", help="URL of a NATS server with JetStream."),
    click.option("--host", default=_DEFAULTS.host, show_default=True, help="Address that the HTTP ports listen on."),
    click.option("--port", default=_DEFAULTS.port, show_default=True, help="The OpenAI API; 0: any free port."),
    click.option(
        "--admin-port", default=_DEFAULTS.admin_port, show_default=True, help="The admin API; 0: any free port."
    ),
    click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda", "mock"])),
    click.option(
        "--dtype", default="auto", show_default=True, type=click.Choice(["auto", "float32", "bfloat16", "float16"])
    ),
    click.option("--slots", default=0, help="Requests that run at once on a worker. [default: 64]"),
    click.option("--tokens-per-step", default=0, help="Tokens of one forward pass at most. [default: by device]"),
    click.option("--kv-mib", default=0, help="KV cache of a worker, MiB. [default: by what is free]"),
    click.option("--threads", default=0, help="Threads of a CPU worker. [default: cores / workers]"),
    click.option(
        "--mock-step-ms",
        default=0.0,
        help="Length of every step of the mock device. [default: that of a large GPU, by its load]",
    ),
    click.option(
        "--mock-profile",
        default="",
        help="Sizes and step times of the mock device: a device model by name (llama2-70b-h100-tp4) or a file of"
        " `headgate profile`.",
    ),
    click.option(
        "--preemption",
        default="hybrid",
        show_default=True,
        type=click.Choice(["none", "recompute", "swap", "tail", "hybrid"]),
        help="How a running request gives way: by cost, or always one way.",
    ),
    click.option("--force-preempt-every", default=0, help="Debugging: preempt a request every so many steps."),
    click.option("--sample-ratio", default=1.0, show_default=True, help="Share of requests that are traced."),
    data_option,
)


def stack_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """All of them, under the names of `Settings`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
