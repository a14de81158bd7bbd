"""One merge for all viewers: it listens, asks the stack to tell, and makes frames, for as long as somebody looks.

Without viewers there is no task, no subscription and no message: the actors stop telling 3 s after the last one left.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager

import msgspec
import structlog

from actors.messages import AdmissionFacts, SchedulerFacts, Watching
from actors.runtime import Node
from gateway.errors import ApiError
from gateway.live.frame import Frame
from gateway.live.heard import Heard
from gateway.live.merge import merged_frame
from gateway.stack_view import StackView
from policies.vocabulary import Tenant

__all__ = ["MOST_VIEWERS", "LiveHub", "Viewer", "unavailable"]

MOST_VIEWERS = 32
#: Between frames.
_EVERY_S = 0.25
#: Where nothing new was heard a frame still comes so often: ages and states change by themselves.
_LEAST_EVERY_S = 1.0
#: Between the words to the stack that somebody looks.
_WATCHING_EVERY_S = 1.0
#: So long the first frame waits for everybody's facts.
_FIRST_FACTS_S = 1.0


def unavailable(why: str) -> ApiError:
    """There is no live view now."""
    return ApiError(why, status=503, type="service_unavailable_error", code="overloaded", retry_after_s=5.0)


class Viewer:
    """Somebody who looks. Each frame has what is new since the one before, however long that was."""

    def __init__(self, hub: LiveHub) -> None:
        self._hub = hub
        self._tick = -1
        self._steps = 0
        self._decisions = 0

    async def next(self) -> bytes | None:
        """The newest frame as JSON, once it is newer than the last one that was given; None when the hub has closed."""
        hub = self._hub
        while hub.tick == self._tick or hub.tick < 0:
            if not await hub.ticked():
                return None
        if hub.is_closed:
            return None
        frame = hub.encoded(self._steps, self._decisions, full=self._tick < 0)
        self._tick = hub.tick
        self._steps, self._decisions = hub.heard.steps_heard, hub.heard.decisions_heard
        return frame


class LiveHub:
    """`tenants` gives the directory's at any moment; `unix` the time of day."""

    def __init__(
        self,
        node: Node,
        *,
        view: StackView,
        tenants: Callable[[], Iterable[Tenant]],
        models: Mapping[str, object],
        clock: Callable[[], float] = time.monotonic,
        unix: Callable[[], float] = time.time,
    ) -> None:
        self.heard = Heard(clock)
        #: Number of the newest frame since somebody looks; -1: there is none yet.
        self.tick = -1
        self.is_closed = False
        self._node = node
        self._view = view
        self._tenants = tenants
        self._models = models
        self._clock = clock
        self._unix = unix
        self._viewers = 0
        self._task: asyncio.Task[None] | None = None
        self._ticked = asyncio.Event()
        self._has_failed = False
        self._base: Frame | None = None
        self._cache: dict[tuple[int, int, bool], bytes] = {}

    @asynccontextmanager
    async def viewer(self) -> AsyncIterator[Viewer]:
        """Look, for as long as the context is open.

        :raises ApiError: 503, too many look already, or this gateway is leaving.
        """
        if self.is_closed:
            raise unavailable("This gateway is shutting down.")
        if self._viewers >= MOST_VIEWERS:
            raise unavailable(f"This gateway has {MOST_VIEWERS} viewers, the most that it serves.")
        self._viewers += 1
        if self._task is None:
            self.tick, self._has_failed, self._ticked = -1, False, asyncio.Event()
            self._task = asyncio.create_task(self._watch(), name="live")
        try:
            yield Viewer(self)
        finally:
            self._viewers -= 1
            if not self._viewers and self._task is not None:
                self._task.cancel()
                self._task = None

    async def ticked(self) -> bool:
        """Wait for the next frame. False: there will be none."""
        if not self.is_closed:
            await self._ticked.wait()
        return not (self.is_closed or self._has_failed)

    def encoded(self, steps: int, decisions: int, *, full: bool) -> bytes:
        """The newest frame as JSON, with steps and decisions after the given numbers."""
        assert self._base is not None, "there is no frame before the first tick"
        key = (steps, decisions, full)
        body = self._cache.get(key)
        if body is None:
            new_steps = self.heard.steps(steps)
            if full:  # of several schedulers, each told its own one after the other
                new_steps.sort(key=lambda step: step.at)
            frame = msgspec.structs.replace(
                self._base, full=full, steps=new_steps, decisions=self.heard.decisions(decisions)
            )
            body = self._cache[key] = msgspec.json.encode(frame)
        return body

    def close(self) -> None:
        """End all streams: the gateway leaves."""
        self.is_closed = True
        self._ticked.set()
        if self._task is not None:
            self._task.cancel()
            self._task = None

    # --- while somebody looks

    async def _watch(self) -> None:
        leave: list[Callable[[], None]] = []
        try:
            leave.append(await self._node.subscribe("scheduler", SchedulerFacts, self.heard.heard_scheduler))
            leave.append(await self._node.subscribe("admission", AdmissionFacts, self.heard.heard_admission))
            await self._keep_framing()
        except Exception as error:
            structlog.get_logger().error("the live view failed", error=repr(error))
            self._has_failed = True
            self._ticked.set()  # its viewers come again
        finally:
            for stop in leave:
                stop()

    async def _keep_framing(self) -> None:
        began = asked = self._clock()
        framed, counted = 0.0, (-1, -1)
        await self._ask(whole=True)
        while True:
            now = self._clock()
            if self.heard.lacks or now - asked >= _WATCHING_EVERY_S:
                asked = now
                await self._ask(whole=self.heard.lacks)
            heard = self.heard.steps_heard, self.heard.decisions_heard
            if self.tick < 0:
                is_due = self.heard.is_complete(self._models) or now - began >= _FIRST_FACTS_S
            else:
                is_due = heard != counted or now - framed >= _LEAST_EVERY_S
            if is_due:
                framed, counted = now, heard
                self._frame()
            await asyncio.sleep(_EVERY_S if self.tick >= 0 else _EVERY_S / 10)

    async def _ask(self, *, whole: bool) -> None:
        self.heard.lacks = False
        with contextlib.suppress(ConnectionError):
            await self._node.publish("gateway", Watching(whole=whole))

    def _frame(self) -> None:
        self._base = merged_frame(
            at=round(self._unix(), 3),
            gateway=self._node.instance,
            models=list(self._models),
            tenants=self._tenants(),
            schedulers=self.heard.schedulers(),
            admissions=self.heard.admissions(),
            heartbeats=self._view.heartbeats(),
            processes=self._view.processes(),
        )
        self._cache.clear()
        self.tick += 1
        ticked, self._ticked = self._ticked, asyncio.Event()
        ticked.set()
