"""Moved to `headgate.nats`."""

from __future__ import annotations

from headgate.nats import *  # noqa: F403
