"""The thread that owns the device: order, depth, resets and failures."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, cast

from actors.device_thread import DeviceThread
from gpu_worker.engine import Engine
from policies.vocabulary import Step


class Recorder:
    """An engine that writes down what it was asked to do. Steps are done when `release` is set."""

    def __init__(self, *, asynchronous: bool) -> None:
        self.asynchronous = asynchronous
        self.calls: list[str] = []
        self.release = threading.Event()
        self.launched = threading.Semaphore(0)

    def launch(self, step: Step) -> int:
        if step.number < 0:
            raise RuntimeError("the device failed")
        self.calls.append(f"launch {step.number}")
        self.launched.release()
        return step.number

    def is_done(self, handle: int) -> bool:
        return self.release.is_set()

    def collect(self, handle: int) -> int:
        self.release.wait()
        self.calls.append(f"collect {handle}")
        return handle

    def reset(self) -> None:
        self.calls.append("reset")


def step(number: int) -> Step:
    return Step(number, [], [], [], [], [], [], [])


async def run(recorder: Recorder, numbers: list[int], *, results: int) -> list[Any]:
    """Submit steps, release them, and return what came back."""
    came: asyncio.Queue[Any] = asyncio.Queue()
    device = DeviceThread(cast(Engine, recorder), on_result=came.put_nowait, on_failure=came.put_nowait)
    for number in numbers:
        device.submit(step(number))
    if recorder.asynchronous:
        for _ in range(min(2, len(numbers))):
            await asyncio.to_thread(recorder.launched.acquire)
    recorder.release.set()
    async with asyncio.timeout(10):
        got = [await came.get() for _ in range(results)]
        await device.reset()
        await device.close()
    return got


async def test_a_synchronous_engine_is_collected_at_once() -> None:
    """On a CPU the result of a step is out before the next one is launched."""
    recorder = Recorder(asynchronous=False)
    assert await run(recorder, [1, 2], results=2) == [1, 2]
    assert recorder.calls == ["launch 1", "collect 1", "launch 2", "collect 2", "reset"]


async def test_an_asynchronous_engine_is_kept_two_deep() -> None:
    """On a GPU step 2 is launched while step 1 runs, and step 3 only after step 1 was collected."""
    recorder = Recorder(asynchronous=True)
    assert await run(recorder, [1, 2, 3], results=3) == [1, 2, 3]
    assert recorder.calls[:4] == ["launch 1", "launch 2", "collect 1", "launch 3"] or recorder.calls[:4] == [
        "launch 1",
        "launch 2",
        "collect 1",
        "collect 2",
    ]
    assert recorder.calls[-1] == "reset"


async def test_a_failure_is_told() -> None:
    """What the engine raises reaches the event loop, as the failure of the device."""
    recorder = Recorder(asynchronous=False)
    came: asyncio.Queue[Any] = asyncio.Queue()
    device = DeviceThread(cast(Engine, recorder), on_result=came.put_nowait, on_failure=came.put_nowait)
    device.submit(step(-1))
    async with asyncio.timeout(10):
        assert str(await came.get()) == "the device failed"
        await device.close()
