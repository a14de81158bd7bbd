"""Logs of a process: one JSON object a line on stderr, each carrying the ids of the trace it belongs to.

structlog is the way in; what libraries say through the standard library (uvicorn, nats, opentelemetry) takes the same
processors and comes out alike. On a terminal the lines are for people instead.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import AbstractContextManager
from typing import Any, TextIO

import msgspec
import structlog
from opentelemetry.trace import get_current_span
from structlog.typing import EventDict, Processor, WrappedLogger

from observability.errors import BadLogLevel

__all__ = ["bound", "setup_logs"]

_LEVELS = ("debug", "info", "warning", "error", "critical")
# They say what our own access log and traces say better, once per request.
_QUIET = ("uvicorn.access", "httpx", "httpcore", "asyncio", "urllib3")


def setup_logs(role: str, instance: str, *, level: str | None = None, stream: TextIO | None = None) -> None:
    """Configure the logging of this process; the one call for the process's main function.

    `level` (default: the environment's HEADGATE_LOG, else info) holds for structlog and the standard library. A second
    call replaces the first. Every line has timestamp, level, event, role, instance; trace_id and span_id inside a
    recording span; and whatever `bound` holds.

    :raises BadLogLevel: the level is not one of debug, info, warning, error, critical.
    """
    named = (level or os.environ.get("HEADGATE_LOG") or "info").strip().lower()
    if named not in _LEVELS:
        raise BadLogLevel(f"log level is {named!r}: HEADGATE_LOG must be one of {', '.join(_LEVELS)}")
    number = logging.getLevelNamesMapping()[named.upper()]
    out = stream or sys.stderr
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _Identity(role, instance),
        _trace_ids,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendering: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=True)]
        if out.isatty()
        else [structlog.processors.ExceptionRenderer(), structlog.processors.JSONRenderer(serializer=_json)]
    )
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True


def bound(**values: str) -> AbstractContextManager[None]:
    """Add `request_id`, `tenant` and the like to every line that the block logs, tasks that it starts included."""
    return structlog.contextvars.bound_contextvars(**values)


class _Identity:
    """Which process says this."""

    def __init__(self, role: str, instance: str) -> None:
        self._role = role
        self._instance = instance

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        event.setdefault("role", self._role)
        event.setdefault("instance", self._instance)
        return event


def _trace_ids(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    context = get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = f"{context.trace_id:032x}"
        event["span_id"] = f"{context.span_id:016x}"
    return event


def _json(event: EventDict, **unused: Any) -> str:
    return msgspec.json.encode(event, enc_hook=repr).decode()
