"""`headgate trace`: what happened to one request, in every process that had to do with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import click

from headgate.client_options import json_option
from headgate.commands.options import data_option
from headgate.errors import HeadgateError
from headgate.output import print_json
from observability.errors import ObservabilityError
from observability.jaeger import find_in_jaeger, find_linked_in_jaeger
from observability.span_store import Span, find_linked, find_trace
from observability.span_tree import render_tree

__all__ = ["command"]

_POLL_S = 0.1
# An answer's id names the same request as its x-request-id.
_ANSWER_PREFIXES = ("chatcmpl-", "cmpl-")


@click.command(name="trace", epilog="Example: headgate trace req-019a3c5e77f0d5b1c2a4 (the x-request-id of an answer)")
@click.argument("request_id")
@click.option("--wait", type=click.FloatRange(0, 60), default=2.0, show_default=True, help="Seconds to wait for it.")
@click.option(
    "--url", envvar="HEADGATE_JAEGER_URL", metavar="URL", help="Ask the Jaeger at this address, not the embedded store."
)
@data_option
@json_option
def command(request_id: str, wait: float, url: str | None, data: str, as_json: bool) -> None:
    """Print the spans of REQUEST_ID as a tree: process, start, duration (ms), what they say.

    REQUEST_ID is the x-request-id of an answer, or its id. Spans are in <data>/spans.db, unless a Jaeger is named.
    """
    for prefix in _ANSWER_PREFIXES:
        if request_id.startswith(prefix):
            request_id = f"req-{request_id.removeprefix(prefix)}"
    store = Path(data) / "spans.db"
    read = (lambda: find_in_jaeger(url, request_id)) if url else (lambda: find_trace(Path(data), request_id))
    spans = _find(read, wait)
    if not spans:
        where = _without_login(url) if url else store
        raise HeadgateError(
            f"no spans of request {request_id!r} in {where}: its id is wrong, it was not sampled and went well, "
            "or it is so old that its spans were trimmed"
        )
    if as_json:
        print_json(spans)
    else:
        steps = find_linked_in_jaeger(url, spans) if url else find_linked(Path(data), spans)
        click.echo(render_tree(spans, steps))


def _without_login(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _find(read: Callable[[], list[Span]], wait_s: float) -> list[Span]:
    """Processes write their spans half a second after their end. The gateway's is the root, and the last to end."""
    give_up = time.monotonic() + wait_s
    try:
        while True:
            spans = read()
            if any(span.kind == "server" for span in spans) or time.monotonic() >= give_up:
                return spans
            time.sleep(_POLL_S)
    except ObservabilityError as error:
        raise HeadgateError(str(error)) from error
