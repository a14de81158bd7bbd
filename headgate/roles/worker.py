"""A worker's process: loads the engine, holds the lease of its device, serves steps."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from actors.runtime.heartbeat import Alive
from actors.worker import Worker
from gpu_worker.engine import Engine, Progress, load_engine
from gpu_worker.mock import MockEngine
from headgate.process import RoleContext
from headgate.settings import Settings
from observability.metrics import WorkerMetrics
from simulator.devices import load_device

__all__ = ["worker"]

_DEVICE_FAILED = 71


@asynccontextmanager
async def worker(context: RoleContext) -> AsyncIterator[Worker]:
    """The engine loads in a thread, and tells on the bus how far it is."""
    log = structlog.get_logger()
    engine = await _load(context)
    spec = engine.spec
    log.info("engine is ready", device=spec.device, blocks=spec.blocks, slots=spec.slots, context=spec.max_context)

    def failed(error: BaseException) -> None:
        # What the device holds cannot be trusted: end at once, without drain. Its requests go elsewhere.
        log.error("the device failed", error=str(error), exc_info=error)
        os._exit(_DEVICE_FAILED)

    try:
        yield Worker(engine, tracing=context.tracing, metrics=WorkerMetrics(context.metrics), on_failure=failed)
    finally:
        engine.close()


async def _load(context: RoleContext) -> Engine:
    settings = context.settings
    progress = {"done": 0, "total": 0}

    def told(done: int, total: int) -> None:
        progress.update(done=done, total=total)

    loading = asyncio.create_task(asyncio.to_thread(_load_engine, context, told))
    while not loading.done():
        share = progress["done"] / progress["total"] if progress["total"] else 0.0
        info = {"pid": os.getpid(), "state": "starting", "model": settings.name, "loaded": round(share, 3)}
        context.readiness.starts(f"loading the model: {share:.0%}")
        await context.node.publish("worker", Alive(context.instance, 0, info))
        await asyncio.wait((loading,), timeout=0.2)
    return await loading


def _load_engine(context: RoleContext, progress: Progress) -> Engine:
    settings = context.settings
    began = time.monotonic()
    if settings.device == "mock" and settings.mock_profile:
        return _load_mock(settings, progress)
    engine = load_engine(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        model=settings.name,
        kv_bytes=settings.kv_mib * 2**20 or None,
        slots=settings.slots or 64,
        tokens_per_step=settings.tokens_per_step or None,
        threads=settings.threads or None,
        mock_step_s=settings.mock_step_ms / 1000 or None,
        progress=progress,
    )
    structlog.get_logger().info("engine loaded", seconds=round(time.monotonic() - began, 2))
    return engine


def _load_mock(settings: Settings, progress: Progress) -> Engine:
    """A mock with the figures of a device model, as the simulator has them. Sizes of `settings` go first."""
    device = load_device(settings.mock_profile)
    return MockEngine.load(
        settings.model,
        model=settings.name,
        blocks=device.blocks,
        host_blocks=device.host_blocks,
        slots=settings.slots or device.slots,
        tokens_per_step=settings.tokens_per_step or device.tokens_per_step,
        step_time=device.step_time,
        block_bytes=device.block_bytes,
        swap_bytes_per_s=device.swap_bytes_per_s,
        progress=progress,
    )
