"""The options that `serve` and `run` share: what a stack is made of."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import click

from headgate.errors import HeadgateError
from headgate.settings import Settings, live_policies
from policies.admission.verdict import AdmissionKind
from policies.config import Batching, Order, Preemption

__all__ = ["data_option", "policies_epilog", "stack_options"]

_DEFAULTS = Settings(data="")
_PORT = click.IntRange(0, 65535)
_NATS_SCHEMES = ("nats", "tls")
_LEDGER_SCHEMES = ("postgresql", "postgres")


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


def _policy(context: click.Context, parameter: click.Parameter, value: str) -> str:
    try:
        _ = Settings(data="", policy=value).policies
    except HeadgateError as error:
        raise click.BadParameter(str(error)) from None
    return value


def _is_address(url: str, schemes: tuple[str, ...]) -> bool:
    try:
        parts = urlsplit(url.strip())
        _ = parts.port
    except ValueError:  # of the port, or of an IPv6 address
        return False
    return parts.scheme in schemes


def _nats(context: click.Context, parameter: click.Parameter, value: str) -> str:
    # Neither value is repeated: it may hold a password.
    if value and not all(
        _is_address(url, _NATS_SCHEMES) and urlsplit(url.strip()).hostname for url in value.split(",")
    ):
        raise click.BadParameter("it is not nats://USER@HOST:PORT, or several of them with commas between")
    return value


def _ledger(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if value and not _is_address(value, _LEDGER_SCHEMES):
        raise click.BadParameter("it is not postgresql://USER@HOST:PORT/DATABASE")
    return value


def policies_epilog() -> str:
    """The list of policies that can serve live, a line each, for the end of a command's help."""
    live = live_policies()
    width = max(len(policies.name) for policies in live) + 2
    lines = [
        textwrap.fill(
            policies.about,
            width=78,
            initial_indent=f"  {policies.name:<{width}}",
            subsequent_indent=" " * (width + 2),
        )
        for policies in live
    ]
    return "\n".join(["\b", "Policies:", *lines])


def _part(name: str, values: object, text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A part of the policy, chosen beside its name."""
    return click.option(f"--{name}", type=click.Choice(get_args(values)), help=f"{text} [default: the policy's]")


_OPTIONS = (
    click.option(
        "--model", default=_DEFAULTS.model, callback=_absolute, help="Model directory. [default: the demo model]"
    ),
    click.option("--model-name", default="", help="What clients call it. [default: the directory's name]"),
    click.option(
        "--nats",
        default="",
        callback=_nats,
        help="URL of a NATS server with JetStream; several of a cluster, with commas between.",
    ),
    click.option("--nats-password-file", default="", help="File with the password of the user in the URL."),
    click.option(
        "--nats-monitor",
        default="",
        help="URL of a NATS server's HTTP monitor, such as http://nats:8222; several with commas between. The ledger"
        " tells its figures as metrics. [default: nobody does]",
    ),
    click.option("--host", default=_DEFAULTS.host, show_default=True, help="Address that the HTTP ports listen on."),
    click.option(
        "--port", default=_DEFAULTS.port, show_default=True, type=_PORT, help="The OpenAI API; 0: any free port."
    ),
    click.option(
        "--admin-port",
        default=_DEFAULTS.admin_port,
        show_default=True,
        type=_PORT,
        help="The admin API; 0: any free port.",
    ),
    click.option(
        "--drain-s",
        default=_DEFAULTS.drain_s,
        show_default=True,
        help="Seconds that what is under way may go on after SIGTERM.",
    ),
    click.option(
        "--ledger",
        default="",
        callback=_ledger,
        metavar="URL",
        help="Usage goes to postgresql://user@host:port/database. [default: SQLite in --data]",
    ),
    click.option("--ledger-password-file", default="", help="File with the password of the user in that URL."),
    click.option("--jaeger-url", default="", help="Query API of a Jaeger. [default: the spans in --data]"),
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
        "--policy",
        default=_DEFAULTS.policy,
        show_default=True,
        metavar="NAME",
        callback=_policy,
        help="How requests are admitted, ordered, batched and preempted: a name from the list below.",
    ),
    _part("batching", Batching, "How a step is filled."),
    _part("order", Order, "Who goes first."),
    _part("admission", AdmissionKind, "Who is let in."),
    _part("preemption", Preemption, "How a running request gives way: by cost, or always one way."),
    click.option("--force-preempt-every", default=0, help="Debugging: preempt a request every so many steps."),
    click.option(
        "--sample-ratio",
        default=1.0,
        show_default=True,
        type=click.FloatRange(0, 1),
        help="Share of requests that are traced.",
    ),
    data_option,
)


def stack_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """All of them, under the names of `Settings`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
