"""One stack for as many tests as possible: it is started as a user would, and every test has a tenant of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stack_support import Stack, Tenant

_PAUSES = pytest.StashKey[dict[str, int]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_PAUSES] = {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What docs/faults.md tells, as it was this time."""
    if config.stash[_PAUSES]:
        terminalreporter.section("longest pause of a stream, ms")
        for fault, pause_ms in config.stash[_PAUSES].items():
            terminalreporter.write_line(f"{pause_ms:7} {fault}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.stack)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One worker with eight slots."""
    one = Stack(tmp_path_factory.mktemp("stack") / "data", "--slots", "8")
    try:
        one.start()
        yield one
    finally:
        one.end()


@pytest.fixture
def pauses(pytestconfig: pytest.Config) -> dict[str, int]:
    """Put a fault and its longest pause in milliseconds here to have it reported."""
    return pytestconfig.stash[_PAUSES]


@pytest.fixture
def tenant(stack: Stack) -> Tenant:
    """A tenant whom nobody else uses."""
    return stack.tenant()


@pytest.fixture
def new_stack(tmp_path: Path) -> Iterator[Callable[..., Stack]]:
    """Makes stacks of this test alone, with options for `serve`."""
    made: list[Stack] = []

    def make(*options: str) -> Stack:
        one = Stack(tmp_path / f"data{len(made)}", *options)
        made.append(one)
        one.start()
        return one

    yield make
    for one in made:
        one.end()
