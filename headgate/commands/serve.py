"""`headgate serve`: the whole stack on one machine."""

from __future__ import annotations

import click
import uvloop

from headgate.commands.options import policies_epilog, stack_options
from headgate.settings import Settings

__all__ = ["command"]


@click.command("serve", epilog=policies_epilog())
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Worker processes, each with a copy of the model.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the addresses as JSON, in one line, once it is ready.")
@stack_options
def command(as_json: bool, **options: object) -> None:
    """Serve a model to many tenants: starts NATS and every role, each in a process of its own.

    Ends with 0 on Ctrl-C and SIGTERM, after requests under way are done.

    \b
    Example:
      headgate serve --model ~/models/Qwen3-0.6B --port 8080
    """
    from headgate.stack import serve_stack  # what `--help` does not need

    raise SystemExit(uvloop.run(serve_stack(Settings(**options), as_json=as_json)))  # type: ignore[arg-type]
