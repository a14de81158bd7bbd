"""What can be wrong with a simulation, or with what it is given."""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "BadDevice",
    "BadFleet",
    "BadSynthetic",
    "BadTenants",
    "BadTrace",
    "BadWindow",
    "LawBroken",
    "SimulatorError",
]


class SimulatorError(Exception):
    """The root of them: something cannot be simulated as asked."""


class BadTrace(SimulatorError):
    """A trace cannot be read: says which file, which line (from 1; None: no single one), and what is wrong there."""

    def __init__(self, path: str | Path, line: int | None, problem: str) -> None:
        place = f"{path}" if line is None else f"{path}, line {line}"
        super().__init__(f"{place}: {problem}")
        self.path, self.line = str(path), line


class BadTenants(SimulatorError):
    """A file of tenants, or a mix of them, is wrong."""


class BadSynthetic(SimulatorError):
    """A synthetic workload has an unknown key or an impossible value."""


class BadWindow(SimulatorError):
    """A window, a factor or a split that leaves no workload."""


class BadDevice(SimulatorError):
    """A device of no such name, or a file of one with a missing or unknown key or an impossible value."""


class BadFleet(SimulatorError):
    """So many workers, or this admission, do not go with the roles of a policy set."""


class LawBroken(SimulatorError):
    """A run lost or invented something: a defect of the simulator, or of what it runs."""
