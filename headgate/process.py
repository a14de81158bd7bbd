"""The frame of every role process: logs, traces, metrics, the connection, and a drain on SIGTERM.

A role's own module (headgate/roles/) makes its actor; this serves it. A crash of the actor ends the process with a code
other than 0, and the process supervisor starts it again: state that survives is in JetStream, the rest is rebuilt from
the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

import structlog
import uvloop

from actors.messages import Exposition
from actors.runtime import Actor, NatsTransport, Node
from headgate.settings import Settings
from observability.logs import setup_logs
from observability.metrics import Metrics
from observability.tracing import Tracing, setup_tracing

__all__ = ["DRAIN_S", "Role", "RoleContext", "run_role"]

#: So long may a role finish what it has after SIGTERM.
DRAIN_S = 8.0
_EXPOSE_EVERY_S = 2.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class RoleContext:
    """What a role is made of."""

    settings: Settings
    instance: str
    node: Node
    metrics: Metrics
    tracing: Tracing


#: Makes the actor of a role, and serves what it needs beside it for as long as the context is open.
Role = Callable[[RoleContext], contextlib.AbstractAsyncContextManager[Actor]]


def run_role(role: str, make: Role, settings: Settings, instance: str, *, child: bool = False) -> int:
    """Run one role until SIGTERM or SIGINT; returns the exit code. `child`: end with the parent process."""
    if child:
        _die_with_parent()
    setup_logs(role, instance)
    return uvloop.run(_main(role, make, settings, instance))


async def _main(role: str, make: Role, settings: Settings, instance: str) -> int:
    log = structlog.get_logger()
    tracing = setup_tracing(role, instance, data_dir=settings.data, sample_ratio=settings.sample_ratio)
    metrics = Metrics(role, instance)
    node = await Node.connect(NatsTransport(settings.nats), role=role, instance=instance)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    try:
        async with make(RoleContext(settings, instance, node, metrics, tracing)) as actor:
            gc.collect()
            gc.freeze()  # a full collection over everything that was imported stalls the loop for 60 to 80 ms
            return await _serve(node, actor, metrics, stop)
    except Exception:
        log.exception("the actor crashed")
        return 70
    finally:
        await node.close()
        await asyncio.to_thread(tracing.shutdown)


async def _serve(node: Node, actor: Actor, metrics: Metrics, stop: asyncio.Event) -> int:
    serving = asyncio.create_task(node.serve(actor), name="serve")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    exposing = asyncio.create_task(_expose(node, metrics), name="expose")
    try:
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            await node.drain(DRAIN_S)
        await serving
        return 0
    finally:
        for task in (stopping, exposing, serving):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _expose(node: Node, metrics: Metrics) -> None:
    """Tell our metrics on the bus, for the gateway's /metrics."""
    refused = 0
    while True:
        while refused < node.dead_letters["mailbox-full"]:
            refused += 1
            metrics.mailbox_refused(node.role)
        body, _ = metrics.render()
        await node.publish(node.role, Exposition(instance=node.instance, text=body))
        await asyncio.sleep(_EXPOSE_EVERY_S)


def _die_with_parent() -> None:
    """A supervisor that was killed must not leave roles behind: they would fight with those of the next one."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent or parent == 1:
        sys.exit(0)
