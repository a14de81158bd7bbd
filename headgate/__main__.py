"""The `headgate` command.

Subcommands are imported when they are run: `headgate --help` stays fast, and `headgate keys` never loads the engine.
"""

from __future__ import annotations

import importlib

import click

from headgate.errors import HeadgateError

__all__ = ["LazyGroup", "main"]

#: What `--help` says of each. The command is the object `command` of `headgate/commands/<name>.py`.
COMMANDS = {
    "serve": "Start the whole stack on this machine.",
    "run": "Start one role against a given NATS server.",
    "secrets": "Make and rotate the secrets of a stack in containers.",
    "health": "Ask a process whether it is alive, or ready.",
    "ps": "List the processes of the running stack.",
    "demo": "Show two contracts being kept under overload.",
    "tenants": "Create, change, list and delete tenants.",
    "keys": "Create, list, rotate and revoke API keys.",
    "top": "Show live whose contract is kept, who is refused, and what runs.",
    "usage": "Sum up who used how many tokens.",
    "audit": "List the latest changes of tenants and keys.",
    "bench": "Play a workload against a running stack: whose contract was kept.",
    "trace": "Print the way of a request through all actors.",
    "profile": "Measure a worker, and write its device model for simulations.",
    "simulate": "Say what would become of a workload, under any policy.",
    "experiment": "Run a grid of simulations, and sum them up.",
}


class LazyGroup(click.Group):
    """Looks commands up in `COMMANDS`, and turns a HeadgateError into one line on stderr and exit code 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"headgate.commands.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except HeadgateError as error:
            raise click.ClickException(str(error)) from error


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: headgate serve, and in another terminal: headgate tenants create acme --ttft-ms 500",
)
@click.version_option(package_name="headgate", prog_name="headgate")
def main() -> None:
    """A multi-tenant gateway and engine for large language models that keeps a contract with each tenant."""


if __name__ == "__main__":
    main(prog_name="headgate")
