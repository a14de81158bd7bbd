"""The size of the gateway's image, computed where there is no container engine: `python -m deploy.image_size`.

It is the base image, the libraries that the Dockerfile installs, and our own packages. The libraries are measured as
they are installed here: every file that a wheel's record names, compiled modules included, over the closure of the
pins. The base cannot be measured without an engine; its size is the one that `docker image ls` shows for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.requirements import REMOVED, pins

__all__ = ["BASE_BYTES", "PACKAGES", "closure", "installed_bytes", "libraries", "own_bytes", "total_bytes"]

#: python:3.11-slim-bookworm on amd64, uncompressed.
BASE_BYTES = 131_000_000
#: The environment's own files: links to the interpreter, activation scripts, `pyvenv.cfg`.
_VENV_BYTES = 100_000
#: A compiled module is about as large as its source; ours are compiled when they are installed.
_COMPILED = 2

_ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("policies", "gpu_worker", "actors", "gateway", "observability", "simulator", "headgate", "demo")


def closure(requirements: Iterable[str]) -> dict[str, metadata.Distribution]:
    """What installing these would install here, by canonical name, without `REMOVED`.

    :raises PackageNotFoundError: one of them is not installed here.
    """
    found: dict[str, metadata.Distribution] = {}
    waiting = [(Requirement(text), "") for text in requirements]
    visited: set[tuple[str, str]] = set()
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in REMOVED or not _applies(requirement, extra):
            continue
        distribution = found.setdefault(name, metadata.distribution(name))
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in visited:
                visited.add((name, wanted))
                waiting += [(Requirement(text), wanted) for text in distribution.requires or ()]
    return found


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def installed_bytes(distribution: metadata.Distribution) -> int:
    """Of all files that its record names, and of the compiled modules beside those that it does not."""
    total = 0
    named = {Path(str(distribution.locate_file(file))) for file in distribution.files or ()}
    for path in named.union(*map(_compiled, named)):
        if path.is_file():
            total += path.stat().st_size
    return total


def _compiled(path: Path) -> list[Path]:
    return list((path.parent / "__pycache__").glob(f"{path.stem}.cpython-*.pyc")) if path.suffix == ".py" else []


def own_bytes(root: Path = _ROOT) -> int:
    """Our packages with the demo model, and their modules once more, compiled."""
    total = 0
    for package in PACKAGES:
        for path in (root / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                total += path.stat().st_size * (_COMPILED if path.suffix == ".py" else 1)
    return total


def libraries(root: Path = _ROOT) -> dict[str, metadata.Distribution]:
    """Those of the image: what the project needs, and the client of the database."""
    return closure(pins(root / "pyproject.toml", extra="postgres"))


def total_bytes(root: Path = _ROOT) -> int:
    """The whole image of deploy/gateway.Dockerfile, uncompressed."""
    installed = sum(map(installed_bytes, libraries(root).values()))
    return BASE_BYTES + _VENV_BYTES + installed + own_bytes(root)


def _main() -> None:
    sizes = {name: installed_bytes(found) for name, found in libraries().items()}
    sizes |= {"(base image)": BASE_BYTES, "(headgate)": own_bytes()}
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        print(f"{size / 1e6:8.1f} MB  {name}")
    print(f"{total_bytes() / 1e6:8.1f} MB")


if __name__ == "__main__":
    _main()
