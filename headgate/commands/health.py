"""`headgate health`: the health check of the images. The standard library alone, so that it is quick."""

from __future__ import annotations

import http.client
import json
import os
import sys
from urllib.parse import urlsplit

import click

__all__ = ["command"]


@click.command("health")
@click.option("--url", default="", help="Of the process. [default: http://127.0.0.1:$HEADGATE_OPS_PORT]")
@click.option("--ready", is_flag=True, help="Does it do its work, or stand by? [default: is it alive?]")
@click.option(
    "--timeout-s",
    default=3.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Seconds to wait for the answer.",
)
def command(url: str, ready: bool, timeout_s: float) -> None:
    """Ask a process on its ops port whether it is well: exit code 0, or 1 with the reasons on stderr.

    \b
    Example:
      headgate health --ready --url http://127.0.0.1:9091
    """
    if not url:
        port = os.environ.get("HEADGATE_OPS_PORT", "")
        if not port:
            raise click.UsageError("give --url, or HEADGATE_OPS_PORT in the environment")
        url = f"http://127.0.0.1:{port}"
    host, port_number = _address(url)
    reasons = _asked(host, port_number, url.rstrip("/") + ("/ready" if ready else "/health"), timeout_s)
    for reason in reasons:
        click.echo(reason, err=True)
    sys.exit(1 if reasons else 0)


def _address(url: str) -> tuple[str, int | None]:
    try:
        parts = urlsplit(url)
        if parts.scheme == "http" and parts.hostname:
            return parts.hostname, parts.port
    except ValueError:  # of the port, or of an IPv6 address
        pass
    raise click.UsageError(f"{url!r} is not http://HOST:PORT: see --url and HEADGATE_OPS_PORT")


def _asked(host: str, port: int | None, url: str, timeout_s: float) -> list[str]:
    """What is wrong; nothing if nothing is."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", urlsplit(url).path)
        answer = connection.getresponse()
        body = answer.read(65536)
    except (OSError, http.client.HTTPException) as error:
        return [f"{url}: {str(error) or type(error).__name__}"]
    finally:
        connection.close()
    if answer.status == 200:
        return []
    try:
        told = json.loads(body)
        reasons = [f"{told.get('state', 'not ready')}: {reason}" for reason in told["reasons"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        reasons = []
    return reasons or [f"{url}: {answer.status} {answer.reason}"]
