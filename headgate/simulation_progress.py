"""How far a long simulation is, for a person at a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

__all__ = ["Bar"]

_PATIENCE_S = 2.0


class Bar:
    """A bar on stderr, once it takes longer than two seconds. Without a terminal, nothing."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun = clock()
        self._silent = not sys.stderr.isatty()
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def show(self, share: float, text: str) -> None:
        """`share` of the work is done, and `text` is being worked on."""
        if self._silent or (self._progress is None and self._clock() - self._begun < _PATIENCE_S):
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                console=Console(file=sys.stderr),
                transient=True,
            )
            self._progress.start()
            self._task = self._progress.add_task(text, total=1.0)
        self._progress.update(self._task, completed=share, description=text)
