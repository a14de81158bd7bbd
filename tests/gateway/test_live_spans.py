"""Where the spans of a waterfall come from, and what is said where they cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import ApiError
from gateway.live.spans import span_source


async def test_a_store_that_is_not_there_has_no_spans(tmp_path: Path) -> None:
    """Nothing was traced yet."""
    assert await span_source(tmp_path)("req-1") == []


async def test_what_cannot_be_read_is_a_503(tmp_path: Path) -> None:
    """A file that is no store, and a Jaeger that does not answer: with the reason, and when to come back."""
    (tmp_path / "spans.db").write_bytes(b"not a database at all" * 100)
    for source in (span_source(tmp_path), span_source(tmp_path, jaeger_url="http://127.0.0.1:1")):
        with pytest.raises(ApiError, match="cannot be read") as refused:
            await source("req-1")
        assert (refused.value.status, refused.value.retry_after_s) == (503, 1.0)
