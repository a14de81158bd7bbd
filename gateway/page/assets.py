"""The files of the live page: our own from this package, and Chart.js from the wheel that ships it.

Each is read, hashed and compressed once, at its first use, in a thread. The page names them under the digest of all of
them, so that a browser may keep them for good and a new version is another address.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path

from gateway.errors import GatewayError

__all__ = ["Asset", "Assets", "AssetsMissing"]

#: Chart.js 4 as the wheel of this distribution has it; its Python code is never imported.
_CHARTS = ("chartkick", "chartkick/django/static/chartkick/Chart.bundle.js")
_CHARTS_NAME = "chart.js"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class AssetsMissing(GatewayError):
    """A file of the page is not installed."""


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is sent."""

    media_type: str
    body: bytes
    compressed: bytes  # gzip


class Assets:
    """`digest` is of all of them, and known after `load`."""

    def __init__(self) -> None:
        self._files: dict[str, Asset] = {}
        self._loading = asyncio.Lock()
        self.digest = ""

    async def load(self) -> None:
        """Read them, if that was not done yet.

        :raises AssetsMissing: one is not installed.
        """
        if self.digest:
            return
        async with self._loading:
            if not self.digest:
                self._files, self.digest = await asyncio.to_thread(_read)

    async def get(self, name: str) -> Asset | None:
        await self.load()
        return self._files.get(name)


def _read() -> tuple[dict[str, Asset], str]:
    files, digest = {}, hashlib.sha256()
    for name, body in sorted(_bodies()):
        digest.update(b"%d %s %d " % (len(name), name.encode(), len(body)) + body)
        media_type = _TYPES[Path(name).suffix]
        files[name] = Asset(media_type, body, gzip.compress(body, mtime=0))
    return files, digest.hexdigest()[:16]


def _bodies() -> Iterator[tuple[str, bytes]]:
    for file in resources.files("gateway.page").joinpath("static").iterdir():
        if Path(file.name).suffix in _TYPES:
            yield file.name, file.read_bytes()
    distribution, path = _CHARTS
    try:
        yield _CHARTS_NAME, Path(str(metadata.distribution(distribution).locate_file(path))).read_bytes()
    except (metadata.PackageNotFoundError, OSError) as error:
        raise AssetsMissing(
            f"Chart.js is looked for in {path} of the distribution {distribution}, which is not there: {error}; "
            f"install Headgate with its dependencies"
        ) from error
