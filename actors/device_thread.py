"""The thread that owns the device.

The engine is synchronous and not thread-safe: one thread runs all of it, in order, and posts each result to the event
loop with `call_soon_threadsafe`. An executor would add a queue and a thread hop to every step.

An asynchronous engine (CUDA) is launched up to two steps deep before the first is collected, so that the device never
waits for the host; a synchronous one (CPU, mock) is collected at once.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from gpu_worker.engine import Engine, StepResult
from policies.vocabulary import Step

__all__ = ["DeviceThread"]

#: How often a thread that waits for work looks whether the step on the device is done.
_POLL_S = 0.0002
_END = object()


class DeviceThread:
    """Runs steps and resets in the order of their submission.

    `on_result(result)` and `on_failure(error)` are called in the event loop's thread. After a failure nothing more is
    run: what the device holds cannot be trusted, and the process should end.
    """

    DEPTH = 2

    def __init__(
        self, engine: Engine, *, on_result: Callable[[StepResult], None], on_failure: Callable[[BaseException], None]
    ) -> None:
        self._engine = engine
        self._on_result = on_result
        self._on_failure = on_failure
        self._work: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._thread.start()

    def submit(self, step: Step) -> None:
        """Queue a step. Never blocks: the scheduler keeps at most two under way."""
        self._work.put(step)

    async def reset(self) -> None:
        """Wait for what is queued, then make the engine forget all rows."""
        done: asyncio.Future[None] = self._loop.create_future()
        self._work.put(done)
        await done

    async def close(self) -> None:
        """Finish what is queued and end the thread."""
        self._work.put(_END)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            self._post(self._on_failure, error)

    def _serve(self) -> None:
        launched: deque[Any] = deque()
        while True:
            work = self._next(launched)
            if isinstance(work, Step):
                launched.append(self._engine.launch(work))
                continue
            while launched and (work is not None or len(launched) >= self.DEPTH or self._engine.is_done(launched[0])):
                self._post(self._on_result, self._engine.collect(launched.popleft()))
            if isinstance(work, asyncio.Future):
                self._engine.reset()
                self._post(work.set_result, None)
            elif work is _END:
                return

    def _next(self, launched: deque[Any]) -> object | None:
        """The next piece of work. None: collect first, since the pipeline is full or its oldest step is done."""
        if len(launched) >= self.DEPTH or (launched and not self._engine.asynchronous):
            return None
        try:
            return self._work.get(timeout=_POLL_S if launched else None)
        except queue.Empty:
            return None

    def _post(self, callback: Callable[[Any], object], argument: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, argument)
        except RuntimeError:  # the loop is closed: the process ends
            return
