"""docker-compose.yml is rehearsed as processes on loopback: see `deploy.rehearsal`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploy.rehearsal.__main__ import rehearsal
from deploy.rehearsal.checks import CHECKS
from deploy.rehearsal.programs import missing
from deploy.rehearsal.scene import Rehearsal

pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(bool(missing()), reason=f"the rehearsal needs more of this host: {missing()}"),
]


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    """One stack for all checks, which are in the order of `CHECKS`."""
    directory = tmp_path_factory.mktemp("rehearsal")
    for folder in (directory, *directory.parents[:2]):
        folder.chmod(0o755)  # PostgreSQL runs as another user, who has to get there
    with rehearsal(directory) as it:
        yield it


@pytest.mark.parametrize("title", CHECKS)
def test_the_rehearsed_stack(title: str, rehearsed: Rehearsal) -> None:
    """Each check finds nothing wrong."""
    assert CHECKS[title](rehearsed) == []
