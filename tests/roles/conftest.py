"""A nats-server with a user per role, and roles started one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from role_processes import Stack


@pytest.fixture
def roles(tmp_path: Path) -> Iterator[Stack]:
    """With a mock device."""
    stack = Stack(tmp_path)
    stack.start_nats()
    try:
        yield stack
    finally:
        stack.end()
