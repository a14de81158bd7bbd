"""The lines of a trace file, plain or gzip, one at a time: a day of a large service is gigabytes of text."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from simulator.errors import BadTrace

__all__ = ["numbered_lines"]

_GZIP_MAGIC = b"\x1f\x8b"
#: A longer line is no line of a trace, but a file of another kind: it is not read into memory whole.
_LONGEST_LINE = 16 * 1024 * 1024


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text without its end) of every line that is not blank. Gzip is recognised by content.

    :raises BadTrace: the file cannot be opened, is cut short (gzip), is not UTF-8, or has a line beyond reason.
    """
    try:
        with path.open("rb") as plain:
            compressed = plain.read(2) == _GZIP_MAGIC
            plain.seek(0)
            if compressed:
                with gzip.GzipFile(fileobj=plain) as unpacked:
                    yield from _decoded(path, unpacked)  # type: ignore[arg-type]
            else:
                yield from _decoded(path, plain)
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile):
            raise BadTrace(path, None, f"not a sound gzip file ({error}); pack it anew") from error
        raise BadTrace(path, None, f"cannot be read: {error.strerror or error}; a trace is a readable file") from error


def _decoded(path: Path, file: BinaryIO) -> Iterator[tuple[int, str]]:
    number = 0
    while True:
        try:
            raw = file.readline(_LONGEST_LINE + 1)
        except EOFError as error:
            raise BadTrace(
                path, number + 1, "the gzip file ends in the middle of its data; the copy is incomplete"
            ) from error
        except zlib.error as error:
            raise BadTrace(path, number + 1, f"the gzip data are damaged from here ({error}); copy it anew") from error
        if not raw:
            return
        number += 1
        if len(raw) > _LONGEST_LINE:
            raise BadTrace(path, number, f"the line is longer than {_LONGEST_LINE} bytes; a trace has short lines")
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")  # the byte-order mark that spreadsheets write
        try:
            text = raw.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            found = raw[error.start : error.start + 4]
            raise BadTrace(
                path, number, f"bytes {found!r} at column {error.start + 1} are not UTF-8; traces are UTF-8 text"
            ) from error
        if text.strip():
            yield number, text
