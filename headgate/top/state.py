"""What is known of the stack at this moment: the latest frame, with the steps and decisions of those before it.

One thread hears, another draws; a lock is between them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from gateway.live.frame import DecisionRow, Frame, StepRow
from headgate.client import AdminClient
from headgate.errors import HeadgateError

__all__ = ["Follower", "Known"]

_STEPS = 400
_DECISIONS = 200
#: Between two attempts to reach a stack that is away.
_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Known:
    """A look at it. Steps and decisions are oldest first; `trouble` is empty while the stack is heard."""

    frame: Frame | None = None
    steps: tuple[StepRow, ...] = ()
    decisions: tuple[DecisionRow, ...] = ()
    trouble: str = ""


class Follower:
    """Follows a stack in a thread, and finds it again when it went away. `connect` makes a client, each time anew:
    a stack that was restarted may listen elsewhere."""

    def __init__(self, connect: Callable[[], AdminClient]) -> None:
        self._connect = connect
        self._decoder = msgspec.json.Decoder(Frame)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._changed = threading.Event()
        self._frame: Frame | None = None
        self._steps: deque[StepRow] = deque(maxlen=_STEPS)
        self._decisions: deque[DecisionRow] = deque(maxlen=_DECISIONS)
        self._trouble = ""

    def start(self) -> None:
        """Begin to follow."""
        threading.Thread(target=self._follow, name="top", daemon=True).start()

    def stop(self) -> None:
        """End. The thread may wait for its socket for a while, and is not waited for."""
        self._stop.set()

    def wait(self, timeout_s: float) -> bool:
        """Whether something changed since the last time, once it has."""
        changed = self._changed.wait(timeout_s)
        self._changed.clear()
        return changed

    def known(self) -> Known:
        """As of now."""
        with self._lock:
            return Known(self._frame, tuple(self._steps), tuple(self._decisions), self._trouble)

    def take(self, data: bytes) -> None:
        """A frame came. :raises HeadgateError: it is not one."""
        try:
            frame = self._decoder.decode(data)
        except msgspec.MsgspecError as error:
            raise HeadgateError(f"the stack speaks another version: {error}") from error
        with self._lock:
            if frame.full:
                self._steps.clear()
                self._decisions.clear()
            self._steps.extend(frame.steps)
            self._decisions.extend(frame.decisions)
            self._frame, self._trouble = frame, ""
        self._changed.set()

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                with self._connect() as admin, admin.frames() as frames:
                    for data in frames:
                        if self._stop.is_set():
                            return
                        self.take(data)
                self._lost("the stack ended the stream")
            except HeadgateError as error:
                self._lost(str(error))
            self._stop.wait(_AGAIN_S)

    def _lost(self, why: str) -> None:
        with self._lock:
            self._trouble = why
        self._changed.set()
