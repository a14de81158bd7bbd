"""Models that the tests of this folder share."""

from __future__ import annotations

import os

# As `load_engine` sets them before torch is imported: with threads that spin, a busy machine makes these tests crawl.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from pathlib import Path
from typing import Any

import pytest
from engine_harness import FAMILIES, save_model

Models = dict[str, tuple[Any, Path]]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Family: (the transformers model, its directory)."""
    made = {}
    for family in FAMILIES:
        directory = tmp_path_factory.mktemp(family)
        made[family] = (save_model(family, directory), directory)
    return made
