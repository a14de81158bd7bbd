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
from actors.node_metrics import NodeMetrics
from actors.runtime import Actor, Forbidden, Node
from headgate.errors import HeadgateError
from headgate.nats.address import open_transport, read_secret
from headgate.readiness import Readiness
from headgate.settings import Settings
from observability.logs import setup_logs
from observability.metrics import Metrics
from observability.tracing import Tracing, setup_tracing

__all__ = ["Role", "RoleContext", "run_role"]

_EXPOSE_EVERY_S = 2.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class RoleContext:
    """What a role is made of. `readiness` is told what its `/ready` is to say."""

    settings: Settings
    instance: str
    node: Node
    metrics: Metrics
    tracing: Tracing
    readiness: Readiness


#: Makes the actor of a role, and serves what it needs beside it for as long as the context is open.
Role = Callable[[RoleContext], contextlib.AbstractAsyncContextManager[Actor]]


def run_role(role: str, make: Role, settings: Settings, instance: str, *, child: bool = False) -> int:
    """Run one role until SIGTERM or SIGINT; returns the exit code. `child`: end with the parent process."""
    if child:
        _die_with_parent()
    setup_logs(role, instance)
    return uvloop.run(_main(role, make, settings, instance))


async def _main(role: str, make: Role, settings: Settings, instance: str) -> int:
    stop = _Stop()
    tracing = setup_tracing(role, instance, data_dir=settings.data, sample_ratio=settings.sample_ratio)
    metrics = Metrics(role, instance)
    readiness = Readiness(role, settings.instance or instance)
    try:
        async with _ops(settings, readiness, metrics):
            return await _connected(role, make, settings, instance, stop, metrics, tracing, readiness)
    except asyncio.CancelledError:
        if stop.told.is_set():
            return 0  # before it was up
        raise
    finally:
        await asyncio.to_thread(tracing.shutdown)


async def _connected(
    role: str,
    make: Role,
    settings: Settings,
    instance: str,
    stop: _Stop,
    metrics: Metrics,
    tracing: Tracing,
    readiness: Readiness,
) -> int:
    password = read_secret(settings.nats_password_file, of="--nats-password-file")
    transport = open_transport(settings.nats, password=password)
    try:
        node = await Node.connect(transport, role=role, instance=instance)
    except Forbidden as error:
        raise HeadgateError(f"{error}: see --nats and --nats-password-file") from error
    metrics.add(NodeMetrics(node))
    readiness.connected_by(lambda: node.transport.is_connected)
    readiness.starts("making the actor")
    try:
        async with make(RoleContext(settings, instance, node, metrics, tracing, readiness)) as actor:
            gc.collect()
            gc.freeze()  # a full collection over everything that was imported stalls the loop for 60 to 80 ms
            readiness.waits()
            stop.is_up = True
            return await _serve(node, actor, metrics, stop.told, readiness, drain_s=settings.drain_s)
    except HeadgateError:
        raise  # it says by itself what is wrong with what we were started with
    except Exception:
        structlog.get_logger().exception("the actor crashed")
        return 70
    finally:
        await node.close()


class _Stop:
    """SIGTERM and SIGINT: told to who serves; whoever is still on the way up is cancelled."""

    def __init__(self) -> None:
        self.told = asyncio.Event()
        self.is_up = False
        self._main = asyncio.current_task()
        for name in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(name, self._signalled)

    def _signalled(self) -> None:
        self.told.set()
        if not self.is_up and self._main is not None:
            self._main.cancel()


def _ops(
    settings: Settings, readiness: Readiness, metrics: Metrics
) -> contextlib.AbstractAsyncContextManager[int | None]:
    if settings.ops_port is None:
        return contextlib.nullcontext()
    from headgate.ops import ops_port  # a web server that a role without it need not load

    return ops_port(settings.host, settings.ops_port, report=readiness.report, metrics=metrics.render)


async def _serve(
    node: Node, actor: Actor, metrics: Metrics, stop: asyncio.Event, readiness: Readiness, *, drain_s: float
) -> int:
    ready = asyncio.Event()
    serving = asyncio.create_task(node.serve(actor, ready=ready), name="serve")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    telling = asyncio.create_task(_tell(ready, readiness), name="tell")
    exposing = asyncio.create_task(_expose(node, metrics), name="expose")
    try:
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            readiness.drains()
            await node.drain(drain_s)
        await serving
        return 0
    finally:
        for task in (stopping, telling, exposing, serving):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _tell(ready: asyncio.Event, readiness: Readiness) -> None:
    await ready.wait()
    readiness.serves()


async def _expose(node: Node, metrics: Metrics) -> None:
    """Tell our metrics on the bus, for the gateway's /metrics."""
    while True:
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
