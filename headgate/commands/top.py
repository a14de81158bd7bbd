"""`headgate top`: the live view in a terminal."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.live import Live

from gateway.live.frame import Frame
from headgate.client import AdminClient
from headgate.client_options import client_options
from headgate.errors import HeadgateError
from headgate.output import print_json
from headgate.top.keyboard import Keyboard
from headgate.top.screen import drawn, printed
from headgate.top.state import Follower, Known

__all__ = ["command"]

#: Width of `--once` where there is no terminal to fit into.
_PIPE_WIDTH = 160
#: How soon a key is seen.
_KEYS_EVERY_S = 0.1
#: So often the screen is drawn anew at the latest: the size of the terminal may have changed.
_DRAWN_EVERY_S = 0.5


@click.command(name="top", epilog="Example: headgate top, or for scripts: headgate top --once --json")
@click.option("--once", is_flag=True, help="Print what is now, and end.")
@client_options
def command(once: bool, data: str, admin_url: str | None, as_json: bool) -> None:
    """Show live whose contract is kept, who is refused and why, and what is in the batch.

    q or Ctrl-C ends it. When the stack goes away it says so, and finds it again.
    """

    def connect() -> AdminClient:
        return AdminClient(data=Path(data), admin_url=admin_url)

    if as_json and not once:
        raise click.UsageError("--json prints one frame: give --once with it")
    with connect() as admin:  # who cannot be reached at all is not waited for
        facts = admin.get("facts")
    if once:
        _print(facts, as_json=as_json)
    elif not sys.stdout.isatty() or Console().is_dumb_terminal:
        raise HeadgateError("this is no terminal to draw on: give --once to print what is now")
    else:
        _follow(Follower(connect))


def _print(facts: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    try:
        frame = msgspec.convert(facts, Frame)
    except msgspec.ValidationError as error:
        raise HeadgateError(f"the stack speaks another version: {error}") from error
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)
    known = Known(frame, tuple(frame.steps), tuple(frame.decisions))
    console.print(printed(known, width=console.width))


def _follow(follower: Follower) -> None:
    console = Console(highlight=False)
    for ending in (signal.SIGTERM, signal.SIGHUP):  # the terminal is to be left as it was then, too
        signal.signal(ending, lambda number, frame: sys.exit(128 + number))
    follower.start()
    try:
        with Keyboard() as keyboard, Live(console=console, screen=True, auto_refresh=False) as live:
            drawn_at, size = 0.0, (0, 0)
            while keyboard.pressed() not in ("q", "Q"):
                has_changed = follower.wait(_KEYS_EVERY_S)
                now, new_size = time.monotonic(), (console.size.width, console.size.height)
                if has_changed or new_size != size or now - drawn_at >= _DRAWN_EVERY_S:
                    drawn_at, size = now, new_size
                    live.update(drawn(follower.known(), width=size[0], height=size[1]), refresh=True)
    except KeyboardInterrupt:
        pass
    finally:
        follower.stop()
