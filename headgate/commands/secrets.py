"""`headgate secrets`: the files that a stack in containers gets its secrets from."""

from __future__ import annotations

import re
from pathlib import Path

import click

__all__ = ["command"]

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)


def _nodes(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    nodes = tuple(node.strip() for node in value.split(",") if node.strip())
    if len(nodes) == 1 or len(set(nodes)) != len(nodes) or not all(map(_HOST.fullmatch, nodes)):
        raise click.BadParameter(f"{value!r} is not a list of at least two different host names, such as n1,n2,n3")
    return nodes


_directory = click.option(
    "--dir", "directory", required=True, type=click.Path(file_okay=False, path_type=Path), help="Where the files are."
)
_cluster = click.option(
    "--cluster",
    default="",
    metavar="HOST,HOST,...",
    callback=_nodes,
    help="NATS servers that are one cluster: nats.conf gets routes to all. [default: a single server]",
)


@click.group("secrets")
def command() -> None:
    """Make and rotate the secrets of a stack in containers. None is ever printed."""


@command.command("init")
@_directory
@_cluster
def init(directory: Path, cluster: tuple[str, ...]) -> None:
    """Make what is missing: admin key, pepper, cache salt, passwords of NATS users, PostgreSQL and Grafana, nats.conf.

    What is there stays. The files are readable by you alone: run the containers as your user.

    \b
    Example:
      headgate secrets init --dir deploy/secrets
      headgate secrets init --dir deploy/secrets --cluster nats-1,nats-2,nats-3
    """
    from headgate.secret_files import NATS_CONFIG, SecretFiles

    done = SecretFiles(directory).make_missing(cluster)
    for name, what in done.items():
        click.echo(f"{what:<8}{directory / name}")
    if done[NATS_CONFIG] == "differs":
        nodes = f" --cluster {','.join(cluster)}" if cluster else ""
        click.echo(
            f"{directory / NATS_CONFIG} is kept, and is not what this version would write: with"
            f" `headgate secrets rotate --dir {directory}{nodes} {NATS_CONFIG}` it is written anew",
            err=True,
        )


@command.command("rotate")
@_directory
@_cluster
@click.argument("name")
def rotate(directory: Path, cluster: tuple[str, ...], name: str) -> None:
    """Replace one secret, by its file's NAME; nats.conf is written anew where it is in there.

    What has the old one must be started again. A new pepper makes every tenant's key invalid.

    \b
    Example:
      headgate secrets rotate --dir deploy/secrets nats-worker
    """
    from headgate.secret_files import SecretFiles

    for written in SecretFiles(directory).rotate(name, cluster):
        click.echo(f"{'made':<8}{directory / written}")
