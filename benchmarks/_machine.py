"""Where and with what something was measured, for the head of a results file."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

__all__ = ["machine"]

_ROOT = Path(__file__).resolve().parent.parent


def machine(*distributions: str) -> dict[str, object]:
    """The processor, the interpreter, the versions of these distributions, the commit, the load and the time."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return {
        "cpu": names[0].partition(":")[2].strip() if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in distributions},
        "commit": _git("rev-parse", "HEAD"),
        "modified_files": len(_git("status", "--porcelain", "--untracked-files=no").splitlines()),
        "load_average_before": round(os.getloadavg()[0], 2),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=False).stdout.strip()
