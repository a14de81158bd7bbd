"""The table of metrics in docs/observability.md."""

from __future__ import annotations

import re
from pathlib import Path

from exported import Exported, catalogue, registries

DOCS = Path(__file__).resolve().parents[2] / "docs" / "observability.md"
_ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| (.*?) \| (\w+) \| (.+) \|$", re.MULTILINE)


async def test_the_table_and_the_code_agree() -> None:
    """Every metric has a row with its type, labels and owner, and a meaning; and every row has its metric."""
    exported = catalogue(await registries())
    written = {
        name: Exported(kind, tuple(re.findall(r"`(\w+)`", labels)), owner)
        for name, kind, labels, owner, meaning in _ROW.findall(DOCS.read_text())
        if meaning.strip()
    }
    assert written.keys() == exported.keys(), written.keys() ^ exported.keys()
    for name, metric in exported.items():
        assert written[name] == metric, name


async def test_every_name_is_a_good_one() -> None:
    """Ours begin with headgate_ (or are of the conventions), say their unit, and no two roles own the same."""
    for name, metric in catalogue(await registries()).items():
        assert name.startswith(("headgate_", "gen_ai_server_", "process_"))
        assert (name.endswith("_total")) == (metric.type == "counter"), name
        assert metric.type in ("counter", "gauge", "histogram")
        assert "tenant_id" not in metric.labels
        assert "key" not in metric.labels
