"""docker-compose.yml is rehearsed as processes on loopback: see `deploy.rehearsal`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from deploy.rehearsal.__main__ import rehearsal
from deploy.rehearsal.checks import CHECKS
from deploy.rehearsal.failover import FAILOVER_CHECKS
from deploy.rehearsal.programs import missing
from deploy.rehearsal.scene import Rehearsal

pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(bool(missing()), reason=f"the rehearsal needs more of this host: {missing()}"),
]


@pytest.fixture(scope="class")
def rehearsed(request: pytest.FixtureRequest) -> Iterator[Rehearsal]:
    """One stack for all checks of a profile, which are in their own order.

    Not below pytest's own directory, which is for one user alone: PostgreSQL runs as another one.
    """
    with (
        tempfile.TemporaryDirectory(prefix="headgate-rehearsal-") as directory,
        rehearsal(Path(directory), profiles=request.cls.profiles) as it,
    ):
        yield it


class TestDefault:
    """What `docker compose up` starts."""

    profiles: ClassVar[tuple[str, ...]] = ()

    @pytest.mark.parametrize("title", CHECKS)
    def test_nothing_is_wrong(self, title: str, rehearsed: Rehearsal) -> None:
        """Each check, in order: the later ones kill."""
        assert CHECKS[title](rehearsed) == []

    def test_what_has_no_data_is_found(self, rehearsed: Rehearsal) -> None:
        """An expression of a metric that is not there, and a share of nothing, have none; a wrong one is an error."""
        assert rehearsed.prometheus.has_data("headgate_up")
        assert not rehearsed.prometheus.has_data("headgate_no_such_metric")
        assert not rehearsed.prometheus.has_data("vector(0) / vector(0)")
        with pytest.raises(ValueError, match="parse error"):
            rehearsed.prometheus.values("sum(")


class TestHighAvailability:
    """The profile ha."""

    profiles: ClassVar[tuple[str, ...]] = ("ha",)

    @pytest.mark.parametrize("title", FAILOVER_CHECKS)
    def test_whoever_dies_streams_go_on(self, title: str, rehearsed: Rehearsal) -> None:
        """Each check kills one of a kind."""
        assert FAILOVER_CHECKS[title](rehearsed) == []
