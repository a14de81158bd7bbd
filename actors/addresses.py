"""Addresses that are made of names: a model's name may have dots and slashes, a token of a NATS subject may not."""

from __future__ import annotations

import re

__all__ = ["instance_of", "scheduler_of"]


def instance_of(name: str) -> str:
    """A name as the instance half of an address."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)


def scheduler_of(model: str) -> str:
    """Where the scheduler of a model is spoken to."""
    return f"scheduler.{instance_of(model)}"
