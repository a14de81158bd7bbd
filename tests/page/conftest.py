"""The tests of the live page: of its server in memory, and of the page in a browser at a stack of its own."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "stack"))  # the stack of the tests beside
