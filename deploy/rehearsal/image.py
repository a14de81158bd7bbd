"""The gateway's image has fewer libraries than this host. Its services are started without those that it lacks, so that
an import that only works here is found."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from packaging.utils import canonicalize_name

from deploy.image_size import libraries

__all__ = ["GATEWAY_IMAGE", "modules_not_in_image", "write_import_guard"]

GATEWAY_IMAGE = "headgate/gateway:"

#: The interpreter imports a module of this name at its start, from PYTHONPATH.
_GUARD = """
import importlib.abc
import sys


class NotInImage(importlib.abc.MetaPathFinder):
    names = frozenset({names!r})

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"{{name}} is not in the image", name=name)


sys.meta_path.insert(0, NotInImage())
"""


def modules_not_in_image() -> list[str]:
    """Top-level modules that are installed here by a library that the image does not have."""
    there = {*libraries(), "headgate"}
    return sorted(
        module
        for module, owners in metadata.packages_distributions().items()
        if not there & set(map(canonicalize_name, owners))
    )


def write_import_guard(directory: Path) -> None:
    """Make `directory` one that, in PYTHONPATH, keeps them from being imported."""
    directory.mkdir(exist_ok=True)
    (directory / "sitecustomize.py").write_text(_GUARD.format(names=modules_not_in_image()))
